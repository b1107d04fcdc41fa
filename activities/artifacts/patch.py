"""What a run changed: the patch from its base commit to its work tree, made from a tree that a guest may have forged.

A file of the base that was not read from the disk is in it as it was. A file whose bytes are those that a checkout of
the base has is unchanged, whatever its line-ending rules say; all others are in it with their own bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from activities.artifacts.changes import Changes
from activities.artifacts.confined_git import ConfinedGit, null_separated, object_format
from activities.artifacts.pointers import POINTER_BYTES, Pointer, pointer
from activities.artifacts.tree import blob_id, files_and_links, is_file, may_be_made, same_content, set_aside
from foundation.errors import MachineError
from foundation.units import format_size
from storage.redaction import Redactor

# New files above this size are named, but not put into the patch.
FILE_MAX = 100 * 2**20
# Changed files above this size are named, and left as they were.
CHANGED_MAX = 512 * 2**20

_SHORTSTAT = re.compile(r"(\d+) (file|insertion|deletion)")
_REGULAR = {"100644", "100755"}
_NO_MODE = "000000"
# Contents as they are. Line endings are converted only where a checkout of the base converts them too.
_RAW = "* -text\n"
_RAW_ENCODED = "* !working-tree-encoding\n"
_REFUSED = "git refuses it"
_HIDDEN = "a binary file with a secret value in it"
# Parts of a path that stand for .git on some system; git refuses them everywhere.
_REFUSED_NAME = re.compile(r"(?:^|[/\\])(?:\.git|git~1)[ .]*(?:[/\\:]|$)", re.IGNORECASE)


def write_patch(
    git: ConfinedGit,
    base: str,
    tree: Path,
    patch: Path,
    *,
    tracked: set[str] | None = None,
    unread: Callable[[str], str | None] = lambda _: None,
    links: Iterable[str] = (),
    redactor: Redactor | None = None,
    above: str = "",
) -> Changes:
    """Write the patch from commit ``base`` to the tree, which holds no entry named ``.git``.

    Commits of the agent, new files and binary files are in it; ignored files are not, unless they are ``tracked``.
    ``unread`` has, for a path that is not in the tree and may be on the disk, the reason.
    ``links`` are the base's submodules: files below them are in the patch as new ones. Git writes binary files
    compressed, where no secret can be replaced: those in which ``redactor`` finds one stay out. ``above`` is the path
    of the tree in the workspace, for a submodule's. Raises MachineError.
    """
    git = replace(git, readable={**git.readable, "/tree": tree})
    comparison = _Comparison(git, base, tree, tracked or set(), unread, redactor, above)
    with set_aside(tree, {path: git.scratch / "links" / path for path in links}) as below:
        return comparison.write(patch, below_links=bool(below))


def snapshot(git: ConfinedGit, commit: str, tree: Path, unread: Callable[[str], str | None]) -> tuple[str, Changes]:
    """The id of a tree object of the directory, which began as a checkout of ``commit``; its rules are the patch's."""
    with TemporaryDirectory(dir=git.scratch) as own:
        index = {**git.environment, "GIT_INDEX_FILE": f"/scratch/{Path(own).name}/index"}
        git = replace(git, readable={**git.readable, "/tree": tree}, environment=index)
        return _Comparison(git, commit, tree, set(), unread).write_tree()


@dataclass(frozen=True)
class _Row:
    """One difference between the base and the index, as ``git diff-index --raw`` has it."""

    old_mode: str
    new_mode: str
    old_id: str
    path: str


class _Comparison:
    def __init__(
        self,
        git: ConfinedGit,
        base: str,
        tree: Path,
        tracked: set[str],
        unread: Callable[[str], str | None],
        redactor: Redactor | None = None,
        above: str = "",
    ) -> None:
        self._git = git
        below = f"{above}/" if above else ""
        # A line that says where a file came from has no prefix.
        moves = "--no-renames" if above else "--find-renames"
        self._patch = (*_PATCH, moves, f"--src-prefix=a/{below}", f"--dst-prefix=b/{below}")
        self._base = base
        self._tree = tree
        self._tracked = tracked
        self._unread = unread
        self._redactor = redactor
        self._attributes = ""
        self._changes = Changes()

    def write(self, patch: Path, *, below_links: bool) -> Changes:
        changes = self._changes
        added = set(self._compare())
        added -= self._leave_out_secrets(added)
        with patch.open("wb") as file:
            self._run("diff-index", *self._patch, self._base, stdout=file)
        self._count(self._run("diff-index", "--cached", "--shortstat", "--no-renames", self._base))
        changes.untracked = sorted(name for name in added if name not in self._tracked)
        if below_links:
            self._append_links(patch)
        return changes

    def write_tree(self) -> tuple[str, Changes]:
        self._compare()
        return os.fsdecode(self._run("write-tree")).strip(), self._changes

    def _compare(self) -> list[str]:
        """Bring the index to what the tree has. The names of what is new."""
        self._run("read-tree", self._base)
        self._add()
        self._leave_out_refused()
        self._settle_pointers()
        self._keep_unread()
        self._keep_large()
        self._settle_line_endings()
        self._add_ignored()
        added = self._names("--diff-filter=A", "--no-renames")
        self._leave_out_large(added, self._tree)
        return added

    def _add(self) -> None:
        """Take the tree into the index, its ignore files counting, line endings as they are."""
        self._git.set_attributes(_RAW)
        try:
            self._run("add", "--all")
        except MachineError:
            # A file that contradicts its declared encoding stops git; then contents are taken as they are.
            self._attributes = _RAW_ENCODED
            self._git.set_attributes(_RAW + _RAW_ENCODED)
            self._add_what_can_be()

    def _add_what_can_be(self) -> None:
        try:
            self._run("add", "--all")
        except MachineError:
            # A name or a file that git takes from nobody stops it too; then that one is left out.
            self._run("add", "--all", "--ignore-errors", check=False)
            for name in null_separated(self._run("ls-files", "-z", "--others", "--exclude-standard")):
                self._changes.left_out[name] = _REFUSED
            for name in null_separated(self._run("ls-files", "-z", "--modified")):
                self._changes.unread[name] = _REFUSED
        else:
            self._changes.notes.append(
                "A file contradicts its working-tree-encoding; such files are in the patch as bytes."
            )

    def _leave_out_refused(self) -> None:
        """Take out new names that git refuses in a checkout: with one of them, no patch can be applied."""
        refused = [name for name in self._names("--diff-filter=A", "--no-renames") if _REFUSED_NAME.search(name)]
        self._changes.left_out |= dict.fromkeys(refused, _REFUSED)
        self._update_index("--force-remove", refused)

    def _settle_pointers(self) -> None:
        """Take files of git LFS that have the content of a pointer of the base for that pointer, also at another path.

        All others are in the patch with their own content: git-lfs makes a pointer of it when it is added.
        """
        rows = [row for row in self._rows("--diff-filter=DM") if row.old_mode in _REGULAR]
        if not rows:
            return
        pointers = self._pointers({row.old_id for row in rows})
        kept = [
            (row.new_mode, row.old_id, row.path)
            for row in rows
            if (each := pointers.get(row.old_id)) and row.new_mode in _REGULAR and each.is_of(self._tree / row.path)
        ]
        gone = {
            each.size: row.old_id for row in rows if row.new_mode == _NO_MODE and (each := pointers.get(row.old_id))
        }
        for row in self._rows("--diff-filter=A") if gone else ():
            path = self._tree / row.path
            old_id = gone.get(path.lstat().st_size, "")
            if row.new_mode in _REGULAR and old_id and pointers[old_id].is_of(path):
                kept.append((row.new_mode, old_id, row.path))
        self._enter(kept)

    def _pointers(self, object_ids: set[str]) -> dict[str, Pointer]:
        """Those of the blobs that are pointers of git LFS."""
        ids = "".join(f"{each}\n" for each in sorted(object_ids)).encode()
        sizes = (row.split() for row in os.fsdecode(self._run("cat-file", "--batch-check", input=ids)).splitlines())
        small = [each for each, kind, size in sizes if kind == "blob" and int(size) <= POINTER_BYTES]
        content = self._run("cat-file", "--batch", input="".join(f"{each}\n" for each in small).encode())
        found = {}
        for each in small:
            head, _, content = content.partition(b"\n")
            size = int(head.rsplit(b" ", 1)[1])
            if (read := pointer(content[:size])) is not None:
                found[each] = read
            content = content[size + 1 :]
        return found

    def _keep_unread(self) -> None:
        """Files of the base that are not in the index, but in the tree or perhaps on the disk, stay as they were."""
        kept = []
        for row in self._rows("--diff-filter=D"):
            path = self._tree / row.path
            there = may_be_made(self._tree, row.path)
            reason = self._unread(row.path) if there else None
            if not there and os.path.lexists(path) and not path.is_dir():
                reason = _REFUSED
            if reason is not None:
                self._changes.unread[row.path] = reason
                kept.append((row.old_mode, row.old_id, row.path))
        self._enter(kept)

    def _keep_large(self) -> None:
        """Files of the base that are too large now for git to compare them in memory stay as they were."""
        kept = []
        for row in self._rows("--diff-filter=MT"):
            size = (self._tree / row.path).lstat().st_size
            if size > CHANGED_MAX:
                self._changes.unread[row.path] = f"{format_size(size)}, larger than {format_size(CHANGED_MAX)}"
                kept.append((row.old_mode, row.old_id, row.path))
        self._enter(kept)

    def _settle_line_endings(self) -> None:
        """Compare what differs with a checkout of the base, and take it back or convert it as the checkout was."""
        rows = [
            row
            for row in self._rows("--diff-filter=M")
            if {row.old_mode, row.new_mode} <= _REGULAR  # what is no file is not converted
        ]
        if not rows:
            return
        self._git.set_attributes(self._attributes)
        unchanged, converted = [], []
        with TemporaryDirectory(dir=self._git.scratch) as checkout:
            try:
                self._check_out_base([row.path for row in rows], Path(checkout))
            except MachineError as error:
                self._changes.notes.append(f"Files were not compared with a checkout of the base ({error.message}).")
                return
            for row in rows:
                there = Path(checkout, "tree", row.path)
                if not there.is_file():
                    continue
                if same_content(there, self._tree / row.path):
                    unchanged.append((row.new_mode, row.old_id, row.path))
                elif blob_id(there, object_format(self._base)) != row.old_id:
                    converted.append((row.old_mode, row.old_id, row.path))
        self._enter(unchanged + converted)
        self._update_index("--add", (path for _, _, path in converted))

    def _check_out_base(self, paths: list[str], checkout: Path) -> None:
        """Write the base's files to ``checkout/tree`` as a checkout would, its own attributes counting."""
        (checkout / "tree").mkdir()
        environment = {"GIT_INDEX_FILE": f"/scratch/{checkout.name}/index"}
        self._run("read-tree", self._base, environment=environment)
        listing = null_separated(self._run("ls-files", "-z", "--cached", environment=environment))
        attributes = {path for path in listing if path.rpartition("/")[2] == ".gitattributes"}
        # First the attributes, which count only once they are there.
        for batch in (attributes, set(paths) - attributes):
            self._git.run(
                *("checkout-index", "--quiet", "--force", "-z", "--stdin"),
                work_tree=f"/scratch/{checkout.name}/tree",
                environment=environment,
                input=_lines(batch),
            )

    def _add_ignored(self) -> None:
        """Files that the agent tracks although they are ignored."""
        known = set(null_separated(self._run("ls-files", "-z", "--cached")))
        missing = sorted((self._tracked - known) & set(files_and_links(self._tree)))
        self._git.set_attributes(_RAW + self._attributes)
        self._update_index("--add", missing)
        # Where nothing would be converted, git takes contents from the tree and not from the index.
        self._git.set_attributes(self._attributes)

    def _leave_out_large(self, added: list[str], tree: Path, **options: Any) -> None:
        sizes = {name: (tree / name).lstat().st_size for name in added}
        large = {name: size for name, size in sizes.items() if size > FILE_MAX}
        for name, size in large.items():
            reason = f"a new file of {format_size(size)}, larger than {format_size(FILE_MAX)}"
            self._changes.left_out[name] = f"not in the patch: {reason}"
        self._update_index("--force-remove", large, **options)

    def _leave_out_secrets(self, added: set[str]) -> set[str]:
        """Take out binary files that hold a secret; the names of the new ones among them."""
        secret = set(self._binary_with_secret(self._tree, self._base))
        rows = [row for row in self._rows("--diff-filter=MT") if row.path in secret]
        self._changes.unread |= {row.path: _HIDDEN for row in rows}
        self._enter([(row.old_mode, row.old_id, row.path) for row in rows])
        new = added & secret
        self._changes.left_out |= dict.fromkeys(sorted(new), _HIDDEN)
        self._update_index("--force-remove", new)
        return new

    def _binary_with_secret(self, tree: Path, commit: str, **options: Any) -> Iterator[str]:
        """Files of the index that git takes for binary, and in whose content is a secret."""
        if self._redactor is None:
            return
        # Figures of lines, which binary files do not have.
        for row in null_separated(
            self._run("diff-index", "--cached", "--numstat", "-z", "--no-renames", commit, **options)
        ):
            added, _, path = row.split("\t", 2)
            if added == "-" and is_file(tree / path):
                with (tree / path).open("rb") as file:
                    if self._redactor.finds_in(file):
                        yield path

    def _append_links(self, patch: Path) -> None:
        """Add the files below submodules to the patch. An index of their own holds them, beside the base's commit."""
        environment = {"GIT_INDEX_FILE": "/scratch/links-index"}
        nothing = os.fsdecode(self._run("hash-object", "-t", "tree", "-w", "--stdin")).strip()
        self._git.set_attributes(_RAW + _RAW_ENCODED)
        self._git.run("add", "--all", work_tree="/scratch/links", environment=environment)
        self._git.set_attributes(self._attributes)
        added = null_separated(self._run("ls-files", "-z", "--cached", environment=environment))
        below = self._git.scratch / "links"
        self._leave_out_large(added, below, environment=environment)
        secret = list(self._binary_with_secret(below, nothing, environment=environment))
        self._changes.left_out |= dict.fromkeys(secret, _HIDDEN)
        self._update_index("--force-remove", secret, environment=environment)
        with patch.open("ab") as file:
            self._run("diff-index", *self._patch, nothing, environment=environment, stdout=file)
        self._count(self._run("diff-index", "--cached", "--shortstat", nothing, environment=environment))
        self._changes.untracked = sorted({*self._changes.untracked, *added})

    def _count(self, summary: bytes) -> None:
        figures = {word: int(count) for count, word in _SHORTSTAT.findall(os.fsdecode(summary))}
        self._changes.files += figures.get("file", 0)
        self._changes.insertions += figures.get("insertion", 0)
        self._changes.deletions += figures.get("deletion", 0)

    def _rows(self, *options: str) -> Iterator[_Row]:
        listing = null_separated(
            self._run("diff-index", "--cached", "--raw", "-z", "--no-renames", *options, self._base)
        )
        for facts, path in zip(listing[::2], listing[1::2], strict=True):
            old_mode, new_mode, old_id, _, _ = facts.removeprefix(":").split(" ")
            yield _Row(old_mode, new_mode, old_id, path)

    def _enter(self, entries: list[tuple[str, str, str]]) -> None:
        """Set entries of the index: mode, object id, path."""
        data = b"".join(os.fsencode(f"{mode} {object_id}\t{path}\0") for mode, object_id, path in entries)
        if data:
            self._run("update-index", "-z", "--index-info", input=data)

    def _update_index(self, action: str, names: Iterable[str], **options: Any) -> None:
        if data := _lines(names):
            self._run("update-index", action, "-z", "--stdin", input=data, **options)

    def _names(self, *options: str) -> list[str]:
        return null_separated(self._run("diff-index", "--cached", "--name-only", "-z", *options, self._base))

    def _run(self, *arguments: str, **options: Any) -> bytes:
        return self._git.run(*arguments, work_tree="/tree", **options)


_PATCH = (
    "--cached",
    "--patch",
    "--binary",
    "--full-index",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
)


def _lines(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)
