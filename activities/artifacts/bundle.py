"""The bundle of a run: what its agent committed, stashed or left in further work trees, and the base does not have.

Git copies the guest's objects into a repository of ours and checks each of them on the way; the bundle is made there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from activities.artifacts.confined_git import ConfinedGit
from activities.artifacts.guest_repository import GuestRepository, Tip, Worktree, worktree_ref
from activities.artifacts.patch import snapshot
from foundation.errors import MachineError
from foundation.units import format_size
from storage.redaction import Redactor

BUNDLE_MAX = 2**30

# Fetches all that a bundle has into a clone of the repository.
FETCH = "git fetch {} 'refs/*:refs/agent/*'"

_TIPS_MOST = 200
_MIRROR_TIPS_MOST = 500
# Contents of an object are held in memory as a whole only below this.
_MEMORY = 4 * 2**30
_CAREFUL = ("-c", "core.bigFileThreshold=8m", "-c", "pack.windowMemory=128m", "-c", "core.packedGitLimit=512m")


@dataclass
class Bundle:
    """What was made. ``path`` is None when the base has everything, or a note says why there is no bundle.

    ``refs`` says what each ref is; ``beside_patch`` are those of them that the patch does not have too. ``head`` is the
    commit that the workspace had checked out, if it is in the bundle.
    """

    path: Path | None = None
    head: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    beside_patch: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_bundle(
    git: ConfinedGit,
    base: str,
    guest: GuestRepository,
    trees: dict[str, Path],
    unread: Callable[[str], str | None],
    redactor: Redactor | None,
) -> Bundle:
    """Write ``scratch/work.bundle``. The guest's objects lie in ``scratch/guest``, copied there by ``copy_objects``.

    ``trees`` are directories with the files of the guest's further work trees, by name; changes in them that are not
    committed become a commit. With a ``redactor``, work that holds a secret is not put into a bundle: nobody could take
    it out of there. Raises MachineError when git fails for other reasons than what the guest has.
    """
    return _Bundling(git, base, guest, redactor).write(trees, unread)


class _Bundling:
    def __init__(self, git: ConfinedGit, base: str, guest: GuestRepository, redactor: Redactor | None) -> None:
        self._git = replace(git, memory_bytes=_MEMORY)
        self._base = base
        self._guest = guest
        self._redactor = redactor
        self._bundle = Bundle(notes=list(guest.notes))

    def write(self, trees: dict[str, Path], unread: Callable[[str], str | None]) -> Bundle:
        tips = self._take(self._beyond_the_mirror())
        for worktree in self._guest.worktrees:
            tips += self._worktree(worktree, trees.get(worktree.name), unread)
        if tips:
            self._make(tips)
        return self._bundle

    def _beyond_the_mirror(self) -> list[Tip]:
        """Tips that the mirror does not have, one for each name."""
        named = {tip.ref: tip for tip in reversed(self._guest.tips)}
        missing = self._missing(named.values())
        found = [tip for tip in reversed(named.values()) if tip.object_id in missing]
        if len(found) > _TIPS_MOST:
            self._bundle.notes.append(f"{len(found)} refs hold new work; the first {_TIPS_MOST} were looked at.")
        return found[:_TIPS_MOST]

    def _take(self, tips: list[Tip]) -> list[Tip]:
        """Copy what the tips need into our repository. Those that are not whole are left out and named in the notes."""
        if not tips:
            return []
        self._index_packs()
        if self._import(tips):
            return tips
        taken: list[Tip] = []
        for tip in tips:
            if not self._git.is_late and self._import([tip]):
                taken.append(tip)
            else:
                self._bundle.notes.append(
                    f"Damaged, too large or incomplete, and not in the bundle: {self._printable(tip.what)}."
                )
        return taken

    def _index_packs(self) -> None:
        for pack in sorted((self._git.scratch / "guest" / "pack").glob("*.pack")):
            try:
                self._careful(
                    "index-pack", "-o", f"/scratch/guest/pack/{pack.stem}.idx", f"/scratch/guest/pack/{pack.name}"
                )
            except MachineError as error:
                self._bundle.notes.append(
                    f"A pack of the guest's repository is damaged and was left out ({error.message})."
                )
                pack.unlink()

    def _import(self, tips: list[Tip]) -> bool:
        revisions = "".join(f"{tip.object_id}\n" for tip in tips) + "--not\n" + self._known()
        both = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": "/mirror/objects:/scratch/guest"}
        try:
            with (self._git.scratch / "taken.pack").open("w+b") as pack:
                self._careful(
                    "pack-objects", "--revs", "--stdout", "-q", environment=both, input=revisions.encode(), stdout=pack
                )
            self._careful("index-pack", "--strict", "-o", "/scratch/taken.idx", "/scratch/taken.pack")
            number = len(list(self._objects().glob("*.pack")))
            for ending in ("pack", "idx"):
                (self._git.scratch / f"taken.{ending}").rename(self._objects() / f"pack-{number:040d}.{ending}")
        except MachineError:
            return False
        # An object that is not what its name says has another name now.
        return not self._missing(tips)

    def _missing(self, tips: Iterable[Tip]) -> set[str]:
        """Ids that neither our repository nor the mirror has."""
        asked = "".join(f"{tip.object_id}\n" for tip in tips).encode()
        answers = self._git.run("cat-file", "--batch-check=%(objectname)", input=asked).decode().splitlines()
        return {answer.removesuffix(" missing") for answer in answers if answer.endswith(" missing")}

    def _objects(self) -> Path:
        directory = self._git.scratch / "git" / "objects" / "pack"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _known(self) -> str:
        """What the bundle need not hold: the base, and the branches that the mirror has."""
        heads = self._git.run(
            *("--git-dir=/mirror", "for-each-ref", "--format=%(objectname)", "--sort=-committerdate"),
            *(f"--count={_MIRROR_TIPS_MOST}", "refs/heads"),
        ).decode()
        return f"{self._base}\n{heads}"

    def _worktree(self, worktree: Worktree, tree: Path | None, unread: Callable[[str], str | None]) -> list[Tip]:
        """A commit of what was changed in a work tree and not committed, on top of the commit that it checked out."""
        if worktree.path is None:
            self._bundle.notes.append(
                f"The work tree {self._printable(worktree.name)} lies outside of the workspace, in "
                f"{self._printable(worktree.place)}: "
                "what was not committed there is not collected."
            )
            return []
        if tree is None:
            return []
        if self._git.is_late:
            self._bundle.notes.append(f"There was no time left for the work tree {self._printable(worktree.path)}.")
            return []
        head = worktree.head if worktree.head and self._has(worktree.head) else self._base
        path = worktree.path
        tree_id, changes = snapshot(self._git, head, tree, lambda name: unread(f"{path}/{name}"))
        self._bundle.left_out |= {f"{path}/{name}": why for name, why in changes.left_out.items()}
        self._bundle.notes += changes.notes
        if tree_id == self._line("rev-parse", "--verify", f"{head}^{{tree}}"):
            return []
        commit = self._line(
            *("commit-tree", tree_id, "-p", head, "-m", f"What was not committed in the work tree {worktree.name}"),
            environment=_IDENTITY,
        )
        return [Tip(worktree_ref(worktree.name), commit, f"uncommitted changes in the work tree {path}")]

    def _make(self, tips: list[Tip]) -> None:
        named = {}
        checked_out = self._guest.checked_out
        its_own = checked_out if checked_out.startswith("refs/") else "refs/detached/HEAD"
        for tip in tips:
            ref = next(filter(partial(self._name, object_id=tip.object_id), _names(tip)), None)
            if ref is None:
                self._bundle.notes.append(
                    f"Git could not name it, and it is not in the bundle: {self._printable(tip.what)}."
                )
            else:
                named[ref] = tip.what
        if not named:
            return
        self._git.run("symbolic-ref", "HEAD", checked_out if checked_out in named else next(iter(named)))
        revisions = "".join(f"{ref}\n" for ref in ("HEAD", *named)) + "".join(
            f"^{known}\n" for known in self._known().split()
        )
        if self._redactor is not None and self._holds_secrets(revisions, self._redactor):
            self._bundle.notes.append(
                f"A secret value is in the agent's commits, so there is no bundle of {self._list(named)}."
            )
            return
        self._careful("bundle", "create", "--quiet", "/scratch/work.bundle", "--stdin", input=os.fsencode(revisions))
        path = self._git.scratch / "work.bundle"
        if (size := path.stat().st_size) > BUNDLE_MAX:
            self._bundle.notes.append(
                f"The bundle of {self._list(named)} would have {format_size(size)}, more than "
                f"{format_size(BUNDLE_MAX)}: there is none."
            )
            return
        self._bundle.path = path
        self._bundle.head = next((tip.object_id for tip in tips if tip.ref == its_own), None)
        self._bundle.refs = named
        self._bundle.beside_patch = [
            what for ref, what in named.items() if ref not in {checked_out, "refs/detached/HEAD"}
        ]

    def _holds_secrets(self, revisions: str, redactor: Redactor) -> bool:
        """Whether a known secret is in an object of the bundle, where it is compressed."""
        listing = self._careful("rev-list", "--objects", "--no-object-names", "--stdin", input=os.fsencode(revisions))
        with (self._git.scratch / "contents").open("w+b") as contents:
            self._careful("cat-file", "--batch", input=listing, stdout=contents)
            contents.seek(0)
            return redactor.finds_in(contents)

    def _name(self, ref: str, object_id: str) -> bool:
        """Give an object a ref of our repository. False for a ref that git refuses, or that holds a secret."""
        if self._redactor is not None and self._redactor.redact_text(ref) != ref:
            return False
        try:
            self._git.run("update-ref", "--no-deref", ref, object_id)
        except MachineError:
            return False
        return True

    def _has(self, commit: str) -> bool:
        try:
            self._git.run("cat-file", "-e", f"{commit}^{{commit}}")
        except MachineError:
            return False
        return True

    def _list(self, named: dict[str, str]) -> str:
        return self._printable(", ".join(named.values()))

    def _printable(self, text: str) -> str:
        # Redacted before it is cut: a half of a value is not recognised.
        text = (self._redactor.redact_text(text) if self._redactor else text).encode(errors="replace").decode()
        return (text if text.isprintable() else ascii(text))[:200]

    def _line(self, *arguments: str, **options: Any) -> str:
        return self._git.run(*arguments, **options).decode().strip()

    def _careful(self, *arguments: str, **options: Any) -> bytes:
        return self._git.run(*_CAREFUL, *arguments, **options)


def _names(tip: Tip) -> tuple[str, str]:
    """The refs under which a bundle may have a tip, the better one first."""
    return tip.ref, f"refs/unnamed/{tip.object_id[:12]}"


_IDENTITY = {
    "GIT_AUTHOR_NAME": "Taskyard",
    "GIT_AUTHOR_EMAIL": "taskyard@localhost",
    "GIT_COMMITTER_NAME": "Taskyard",
    "GIT_COMMITTER_EMAIL": "taskyard@localhost",
}
