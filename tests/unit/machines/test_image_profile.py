"""Profiles and the digest of everything that shapes an image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foundation.errors import HostNotReady, ImageNotFound
from machines.images import profile as image_profile
from machines.images.profile import digest_of, image_inputs, load_profile, profile_names


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the profiles and guest files that a test may change."""
    for name in ("PROFILE_DIR", "IMAGE_DIR"):
        copy = tmp_path / name
        shutil.copytree(getattr(image_profile, name), copy)
        monkeypatch.setattr(image_profile, name, copy)
    return tmp_path


def digest(profile: str = "agentic-dev") -> str:
    return digest_of(image_inputs(load_profile(profile)))


def test_every_profile_loads_and_names_its_packages() -> None:
    assert {"agentic-dev", "basic"} <= set(profile_names())
    for name in profile_names():
        assert {"openssh-server", "git", "python3", "ripgrep"} <= set(load_profile(name).all_packages)


def test_extending_profile_holds_all_of_its_base() -> None:
    basic, dev = load_profile("basic"), load_profile("agentic-dev")
    assert set(basic.packages) < set(dev.packages)
    assert dev.claude_code == basic.claude_code
    assert (basic.node, dev.node) == (False, True)


@pytest.mark.parametrize("name", ["nowhere", "", "../profiles/basic", "basic.yaml"])
def test_unknown_profile_names_those_that_exist(name: str) -> None:
    with pytest.raises(ImageNotFound, match="agentic-dev, basic"):
        load_profile(name)


def test_same_inputs_have_the_same_digest() -> None:
    assert digest() == digest()
    assert len(digest()) == 32


def test_profiles_have_different_digests() -> None:
    assert len({digest(name) for name in profile_names()}) == len(profile_names())


def _add_package(sources: Path) -> None:
    path = sources / "PROFILE_DIR" / "agentic-dev.yaml"
    path.write_text(path.read_text().replace("- python3-dev", "- python3-dev\n  - tree"))


def _other_claude(sources: Path) -> None:
    path = sources / "PROFILE_DIR" / "basic.yaml"
    version = load_profile("basic").claude_code.version
    path.write_text(path.read_text().replace(f"version: {version}", "version: 9.9.9"))


def _change_guest_file(sources: Path) -> None:
    with (sources / "IMAGE_DIR" / "setup.sh").open("a") as file:
        file.write("true\n")


def _add_guest_file(sources: Path) -> None:
    (sources / "IMAGE_DIR" / "rootfs" / "etc" / "more").write_text("")


def _take_execute_bit(sources: Path) -> None:
    (sources / "IMAGE_DIR" / "rootfs/usr/local/lib/taskyard/identity").chmod(0o644)


@pytest.mark.parametrize(
    "change", [_add_package, _other_claude, _change_guest_file, _add_guest_file, _take_execute_bit]
)
def test_any_changed_input_changes_the_digest(sources: Path, change) -> None:
    before = digest()
    change(sources)
    assert digest() != before


def test_times_of_files_are_no_input(sources: Path) -> None:
    before = digest()
    for path in (sources / "IMAGE_DIR").rglob("*"):
        path.touch()
    assert digest() == before


def test_unknown_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(HostNotReady, match="riscv64"):
        image_inputs(load_profile("basic"))
