"""A run with submodules and files of git LFS that another run continues: the same tree, and the same patch again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation.settings import Settings
from storage.bucket import Bucket
from storage.names import patch_name
from tests.git_servers import GitServer, git, without_hosts_own
from tests.integration.continuation.test_continuation import SAID, Work
from tests.stand_ins.lfs_server import LfsServer

CONTENT = bytes(range(256)) * 800
PLACES = ("", "lib/middle/", "lib/middle/in ner/")

Begin = Callable[..., Work]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """``top`` has the submodule ``middle``, which has ``inner``; each has texts, and files of LFS."""
    with GitServer(tmp_path / "served") as running:
        names = ("kept.bin", "changed.bin", "removed.bin")
        LfsServer(running).nest(lambda place: {name: CONTENT + f"{name} of {place}".encode() for name in names})
        yield running


@pytest.fixture
def begin(
    services: Settings, bucket: Bucket, tmp_path: Path, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> Begin:
    without_hosts_own(monkeypatch)

    def work(earlier: Work | None = None) -> Work:
        return Work(services, bucket, tmp_path, server.url("top"), earlier, submodules=True, lfs=True)

    return work


def leave_texts(work: Work) -> None:
    for place in PLACES:
        (work.tree / place / "text.txt").write_text("two\n")
        (work.tree / place / "new.txt").write_text("new\n")


def leave_contents(work: Work) -> None:
    for place in PLACES:
        (work.tree / place / "changed.bin").write_bytes(CONTENT[::-1])
        (work.tree / place / "new.bin").write_bytes(bytes(1000))
        (work.tree / place / "removed.bin").unlink()


def leave_both(work: Work) -> None:
    leave_texts(work)
    leave_contents(work)


def leave_commits(work: Work) -> None:
    """Of the repository and of its submodules, the innermost first."""
    leave_texts(work)
    for place in reversed(PLACES):
        git(work.tree / place, "add", "--all")
        git(work.tree / place, "commit", "--quiet", "-m", "own")
    (work.tree / "text.txt").write_text("three\n")


def leave_nothing(work: Work) -> None:
    work.say(SAID)


@pytest.mark.parametrize("leave", [leave_texts, leave_contents, leave_both, leave_commits, leave_nothing])
def test_it_goes_on_in_the_same_tree(begin: Begin, leave: Callable[[Work], None]) -> None:
    first = begin()
    leave(first)
    first.say(SAID)
    first.collect()
    second = begin(first)
    assert second.staged.notes == []
    assert second.files() == first.files()
    second.say(SAID)
    second.collect()
    assert second.read(patch_name(second.id)) == first.read(patch_name(first.id))
    assert begin(second).files() == first.files()
