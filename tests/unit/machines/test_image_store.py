"""The store of images: built once, seen whole or not at all, swept. A stand-in for the builder writes small files."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from foundation.errors import Conflict, HostNotReady, ImageBuildFailed, ImageNotFound
from foundation.settings import Settings
from machines.images import build as image_build
from machines.images import store
from machines.images.store import Image, build_image, find_image, list_images, remove_image


class QuickBuilder(image_build.ImageBuilder):
    """Writes small files where the real builder writes a root file system."""

    built = 0
    failure: BaseException | None = None

    def build(self) -> dict[str, str]:
        type(self).built += 1
        self.output.mkdir()
        for name in ("base.raw", "kernel", "initrd"):
            (self.output / name).write_text(f"{name} {self.built}")
        if self.failure:
            raise self.failure
        return {"git": "1:2.39.5", "claude-code": "2.1.197"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", image_dir=None)


@pytest.fixture(autouse=True)
def builder(monkeypatch: pytest.MonkeyPatch) -> type[QuickBuilder]:
    fresh = type("FreshBuilder", (QuickBuilder,), {})
    monkeypatch.setattr(store, "ImageBuilder", fresh)
    monkeypatch.setattr(store, "check_tools", lambda: None)
    return fresh


def build(settings: Settings, **options: bool) -> Image:
    return build_image(settings, "basic", lambda _: None, **options)


def left_over(settings: Settings) -> list[str]:
    return [path.name for path in settings.images.iterdir() if path.name.startswith(".build-")]


def test_built_image_is_found_read_only_and_complete(settings: Settings) -> None:
    with pytest.raises(ImageNotFound, match="sandbox image build --profile basic"):
        find_image(settings, "basic")
    built = build(settings)
    assert find_image(settings, "basic") == built == list_images(settings)[0]
    assert (built.base.read_text(), built.versions["git"]) == ("base.raw 1", "1:2.39.5")
    assert {path.stat().st_mode & 0o777 for path in built.directory.iterdir()} == {0o444}
    facts = json.loads((built.directory / "image.json").read_text())
    assert facts["inputs"]["profile"]["name"] == "basic"
    assert left_over(settings) == []


def test_same_inputs_are_built_once_unless_asked(settings: Settings, builder: type[QuickBuilder]) -> None:
    first = build(settings)
    assert build(settings) == first
    assert builder.built == 1
    assert build(settings, rebuild=True).base.read_text() == "base.raw 2"


@pytest.mark.parametrize("failure", [ImageBuildFailed("no mirror"), KeyboardInterrupt()])
def test_unfinished_build_leaves_nothing(
    settings: Settings, builder: type[QuickBuilder], failure: BaseException
) -> None:
    builder.failure = failure
    with pytest.raises(type(failure)):
        build(settings)
    assert (list_images(settings), left_over(settings)) == ([], [])
    builder.failure = None
    assert build(settings).base.is_file()


def test_next_build_sweeps_what_a_killed_one_left_but_not_a_live_one(settings: Settings) -> None:
    settings.images.mkdir(parents=True)
    for digest in ("dead", "live"):
        (settings.images / f".build-{digest}-1-abc" / "output").mkdir(parents=True)
    with (settings.images / ".lock-live").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(settings)
        assert left_over(settings) == [".build-live-1-abc"]


def test_of_two_builders_one_builds_and_both_have_the_image(
    settings: Settings, builder: type[QuickBuilder], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, images = threading.Event(), []
    real_build = builder.build

    def build_while_the_other_waits(self: QuickBuilder) -> dict[str, str]:
        assert waiting.wait(10)
        return real_build(self)

    monkeypatch.setattr(builder, "build", build_while_the_other_waits)

    def report(line: str) -> None:
        if "waiting" in line:
            waiting.set()

    threads = [
        threading.Thread(target=lambda: images.append(build_image(settings, "basic", report, rebuild=True)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert images[0] == images[1]
    assert builder.built == 1


def test_removed_image_is_gone(settings: Settings) -> None:
    built = build(settings)
    assert remove_image(settings, built.digest[:8]).digest == built.digest
    assert (list_images(settings), left_over(settings)) == ([], [])
    with pytest.raises(ImageNotFound, match=built.digest[:8]):
        remove_image(settings, built.digest[:8])


def test_empty_digest_removes_nothing(settings: Settings) -> None:
    build(settings)
    with pytest.raises(ImageNotFound):
        remove_image(settings, "")
    assert len(list_images(settings)) == 1


def test_image_under_a_machine_is_neither_removed_nor_replaced(settings: Settings) -> None:
    built = build(settings)
    machine = settings.machines / "vm-0123456789abcdef"
    machine.mkdir(parents=True)
    (machine / "machine.json").write_text(json.dumps({"image_digest": built.digest}))
    with pytest.raises(Conflict, match="vm-0123456789abcdef"):
        remove_image(settings, built.digest)
    with pytest.raises(Conflict, match="vm-0123456789abcdef"):
        build(settings, rebuild=True)
    assert find_image(settings, "basic") == built


def test_missing_tools_are_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_arguments, **_options: None)
    with pytest.raises(HostNotReady, match=r"apt-get install .*e2fsprogs.*mmdebstrap"):
        image_build.check_tools()
