"""The commits that a run pushes: the agent's own, and one of what it left uncommitted, made from patch and bundle.

What a guest made is only ever an object of a repository of ours: nothing of it is checked out, and no hook, filter or
configuration of it counts. What must not be pushed is looked for in every new commit, not in the last one alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from activities.artifacts.confined_git import ConfinedGit, null_separated
from activities.artifacts.reading import BaseEntry, base_entries, submodules
from foundation.errors import MachineError, PushRefused
from foundation.units import format_size
from storage.names import as_text
from storage.redaction import Redactor

PUSH_MAX = 2**30
COMMITS_MOST = 2_000

_MIRROR_TIPS_MOST = 500
_NAMES_MOST = 3
_NAME_CHARS = 100
# What a git host does by itself once it has it: mostly with secrets of its own at hand.
_CI_FILES = re.compile(
    r"\.(?:github|gitea|forgejo)/(?:workflows|actions)/.*|\.github/dependabot\.ya?ml|\.gitlab-ci\.ya?ml|\.gitlab/ci/.*"
    r"|\.circleci/.*|\.woodpecker(?:/.*|\.ya?ml)|\.drone\.ya?ml|\.travis\.ya?ml|\.buildkite/.*|azure-pipelines\.ya?ml"
    r"|bitbucket-pipelines\.ya?ml|Jenkinsfile|\.cirrus\.(?:ya?ml|star)|\.builds?(?:/.*|\.ya?ml)",
    re.IGNORECASE | re.DOTALL,
)
# Git's own letters in patterns of paths.
_SPECIAL = re.compile(r"([*?\[\]\\])")


@dataclass(frozen=True)
class Signature:
    """Whose commit it is, each as ``Name <address>``, and when it was made."""

    author: str
    committer: str
    at: datetime

    def environment(self) -> dict[str, str]:
        """The same as git reads it."""
        made: dict[str, str] = {}
        for role, text in (("AUTHOR", self.author), ("COMMITTER", self.committer)):
            name, _, address = text.rstrip("> ").partition("<")
            made |= {
                f"GIT_{role}_NAME": name.strip(),
                f"GIT_{role}_EMAIL": address,
                f"GIT_{role}_DATE": f"{int(self.at.timestamp())} +0000",
            }
        return made


@dataclass
class Commits:
    """What is to be pushed: ``tip`` is the last commit, None when the run has changed nothing."""

    tip: str | None = None
    count: int = 0
    notes: list[str] = field(default_factory=list)


def make_commits(
    git: ConfinedGit,
    base: str,
    head: str | None,
    patch: Path | None,
    bundle: Path | None,
    message: str,
    signature: Signature,
) -> Commits:
    """The commits from ``base`` on, in the repository ``scratch/git``. The same input makes the same commits.

    ``patch`` and ``bundle`` lie in ``scratch``; ``head`` is the agent's own last commit, in the bundle. Raises
    PushRefused when the patch does not apply, MachineError when git fails otherwise.
    """
    made = Commits()
    entries = base_entries(git, base)
    parent = base
    if head and bundle and _takes(git, base, head, bundle):
        parent = head
    elif head:
        made.notes.append(
            "The agent's own commits do not stand on the base commit, or are damaged: one commit is made."
        )
    tree = _tree(git, base, entries, patch, made)
    if tree == _line(git, "rev-parse", "--verify", f"{base}^{{tree}}"):
        return made
    _refuse_pointers(git, base, entries)
    if tree == _line(git, "rev-parse", "--verify", f"{parent}^{{tree}}"):
        made.tip = parent
    else:
        text = message.encode(errors="replace").strip() + b"\n"
        written = git.run("commit-tree", tree, "-p", parent, input=text, environment=signature.environment())
        made.tip = written.decode().strip()
    made.count = int(_line(git, "rev-list", "--count", made.tip, f"^{base}"))
    return made


def check_commits(git: ConfinedGit, base: str, tip: str, redactor: Redactor, *, ci_files: bool) -> None:
    """Raise PushRefused for what must not be pushed: secrets, what git hosts act on, too much. Raises MachineError."""
    known = f"{tip}\n^{base}\n" + "".join(f"^{each}\n" for each in _mirror_tips(git))
    commits = git.run("rev-list", "--stdin", input=known.encode())
    if (count := commits.count(b"\n")) > COMMITS_MOST:
        raise PushRefused(f"Nothing was pushed: there are {count} commits, and {COMMITS_MOST} are the most.")
    size = int(_line(git, "rev-list", "--objects", "--disk-usage", "--stdin", input=known))
    if size > PUSH_MAX:
        raise PushRefused(
            f"Nothing was pushed: the commits take {format_size(size)}, and {format_size(PUSH_MAX)} are the most."
        )
    if not ci_files:
        options = ("-r", "-c", "--root", "--no-commit-id", "--name-only", "-z", "--no-renames")
        changed = null_separated(git.run("diff-tree", "--stdin", *options, input=commits))
        # A merge may bring a file as another of its parents has it, which none of the commits changes.
        changed += null_separated(git.run("diff-tree", "-r", "--name-only", "-z", "--no-renames", base, tip))
        if found := sorted({name for name in changed if _CI_FILES.fullmatch(name)}):
            raise PushRefused(
                f"Nothing was pushed: the work changes {_named(found, redactor)}, on which git hosts act by "
                "themselves; look at the patch, and set repository.push.ci_files for a run that may change such files."
            )
    listing = git.run("rev-list", "--objects", "--no-object-names", "--stdin", input=known.encode())
    with (git.scratch / "contents").open("w+b") as contents:
        git.run("cat-file", "--batch", input=listing, stdout=contents)
        contents.seek(0)
        if redactor.finds_in(contents):
            raise PushRefused(
                "Nothing was pushed: a value of a secret of this run is in the work or in a commit's message. Take it "
                "out, and give the secret a new value if others have seen it."
            )


def _takes(git: ConfinedGit, base: str, head: str, bundle: Path) -> bool:
    """Take the agent's objects out of the bundle. Whether its last commit is whole and stands on the base."""
    try:
        git.run("bundle", "unbundle", f"/scratch/{bundle.name}")
        for pack in sorted((git.scratch / "git" / "objects" / "pack").glob("*.pack")):
            inside = f"/scratch/git/objects/pack/{pack.name}"
            git.run("index-pack", "--strict", "-o", f"/scratch/{pack.stem}.idx", inside)
        if _line(git, "rev-parse", "--verify", "--quiet", f"{head}^{{commit}}") != head:
            return False
        # All of it is there, and nothing but commits from the base on.
        git.run("rev-list", "--objects", "--quiet", head, f"^{base}")
        return not _line(git, "rev-list", "-n", "1", base, f"^{head}")
    except MachineError:
        return False


def _tree(git: ConfinedGit, base: str, entries: dict[str, BaseEntry], patch: Path | None, made: Commits) -> str:
    """The tree that the patch makes of the base's, without what lies below submodules."""
    git.run("read-tree", base)
    below = [_SPECIAL.sub(lambda match: f"\\{match[0]}", link) + "/*" for link in submodules(entries)]
    if patch is not None and patch.stat().st_size:
        inside = f"/scratch/{patch.name}"
        apart = [f"--exclude={pattern}" for pattern in below]
        try:
            git.run("apply", "--cached", "--allow-empty", "--whitespace=nowarn", *apart, inside)
            if below and git.run("apply", "--numstat", *(f"--include={pattern}" for pattern in below), inside):
                made.notes.append("What was changed in submodules is in the patch, and is not pushed.")
        except MachineError as error:
            raise PushRefused(
                f"Nothing was pushed: the patch does not apply to the base commit ({error.message}). It is an artifact."
            ) from None
    return _line(git, "write-tree")


def _refuse_pointers(git: ConfinedGit, base: str, entries: dict[str, BaseEntry]) -> None:
    """Raise PushRefused when a file of git LFS is changed: its content would have to go to another server."""
    rows = null_separated(git.run("diff-index", "--cached", "--raw", "-z", "--no-renames", "--diff-filter=AMT", base))
    known = {entry.object_id for entry in entries.values()}
    changed = [path for facts, path in zip(rows[::2], rows[1::2], strict=True) if facts.split(" ")[3] not in known]
    if not changed:
        return
    asked = b"".join(os.fsencode(path) + b"\0" for path in changed)
    answers = null_separated(git.run("check-attr", "--cached", "-z", "--stdin", "filter", input=asked))
    if found := [path for path, value in zip(answers[::3], answers[2::3], strict=True) if value == "lfs"]:
        raise PushRefused(
            f"Nothing was pushed: {_named(found, Redactor({}))} is kept by git LFS, to whose server nothing is pushed. "
            "The patch has the content."
        )


def _mirror_tips(git: ConfinedGit) -> list[str]:
    """What the server has already."""
    options = ("--format=%(objectname)", "--sort=-committerdate", f"--count={_MIRROR_TIPS_MOST}", "refs/heads")
    return git.run("--git-dir=/mirror", "for-each-ref", *options).decode().split()


def _named(paths: Iterable[str], redactor: Redactor) -> str:
    paths = list(paths)
    first = ", ".join(redactor.redact_text(as_text(path))[:_NAME_CHARS] for path in paths[:_NAMES_MOST])
    return first + (f" and {len(paths) - _NAMES_MOST} more" if len(paths) > _NAMES_MOST else "")


def _line(git: ConfinedGit, *arguments: str, input: str = "") -> str:  # noqa: A002 -- the name subprocess gives it
    return git.run(*arguments, input=input.encode()).decode().strip()
