"""What an earlier run left in the bucket, put into the workspace of the run that continues it, on whichever host.

Its work tree is its base commit with its patch, its commits are in its bundle, and its agent's conversation is one of
its artifacts. All of it has come from a guest: patch and bundle are taken by a confined git, and only names and ids
that are checked here go anywhere else. What is missing is told, and the run begins without it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from activities.agent.conversation import CONVERSATION_BYTES, file_of, project_of
from activities.artifacts.bundle import BUNDLE_MAX
from activities.artifacts.confined_git import FILE_MAX, ConfinedGit, null_separated
from activities.repository.lfs import contents_below
from foundation.errors import ArtifactNotFound, MachineError
from foundation.urls import without_credentials
from storage import artifacts
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.names import METADATA, bundle_name, conversation_name, patch_name
from workflows.specs.wire import Resume

# Of the time that staging may take.
_SECONDS = 1800.0
_METADATA_BYTES = 16 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAMED_MOST = 3
_NAME_CHARS = 100
# Branches and tags under their own names, all else where no git takes it for its own.
_REFSPECS = (
    "+refs/heads/*:refs/heads/*",
    "+refs/tags/*:refs/tags/*",
    *(f"+refs/{kind}/*:refs/resumed/{kind}/*" for kind in ("stash", "detached", "worktrees", "unnamed")),
    # Of the runs before it: a name of their own, as no two refs may go to one.
    "+refs/resumed/*:refs/resumed/before/*",
)


@dataclass
class EarlierRun:
    """An ended run, by what is in the bucket of it. ``notes`` say what of it is missing in the new workspace."""

    bucket: Bucket
    resume: Resume
    notes: list[str] = field(default_factory=list)
    #: Its metadata; empty when nothing was collected of it, or all of it has been deleted.
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            facts = json.loads(self._read(METADATA, _METADATA_BYTES))
        except (ArtifactNotFound, ValueError, RecursionError):
            facts = None
        if isinstance(facts, dict):
            self.facts = facts
        else:
            self.notes.append(
                f"Nothing was collected of run {self.resume.run}, or it has been deleted: this run begins with the "
                "repository alone."
            )

    def base_commit(self, url: str) -> str | None:
        """The commit that its patch begins at; None when it cannot be continued, which is noted."""
        if not self.facts:
            return None
        repository = self._part("repository")
        commit = repository.get("base_commit")
        if repository.get("url") == without_credentials(url) and isinstance(commit, str) and _COMMIT.fullmatch(commit):
            return commit
        self.notes.append(f"Run {self.resume.run} was one of another repository: nothing of it is continued.")
        return None

    def lay_files(self, tree: Path, mirror: Path, staging: Path, submodules: Sequence[str]) -> None:
        """Bring the clone ``tree``, in which its base commit is checked out, to where the earlier agent left its own.

        ``submodules``, by their paths, and contents of LFS are there already. Raises MachineError when git fails
        otherwise than by what the run has left.
        """
        parts = staging / "earlier"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        git = ConfinedGit(
            mirror,
            tree,
            time.monotonic() + _SECONDS,
            readable={"/earlier": parts},
            environment={"GIT_DIR": "/scratch/.git", "GIT_ALLOW_PROTOCOL": "file"},
        )
        try:
            with contents_below(tree, submodules):
                self._apply_patch(git, parts / "patch")
            self._check_out(git, parts / "bundle")
            _track_ignored(git)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
        self._note_left_out()

    def lay_conversation(self, tree: Path, subpath: str | None) -> str | None:
        """Put the conversation of its agent into the workspace; its id, None when there is none to be continued.

        ``subpath`` is the directory of the repository in which the new agent starts.
        """
        if not self.resume.conversation:
            return None
        said = self._part("conversation")
        same = self._part("repository").get("subpath") == subpath
        try:
            project = str(said["project"]) if same else project_of(subpath)
            target = file_of(tree, project, str(said["id"]))
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(conversation_name(self.resume.run), target, CONVERSATION_BYTES)
        except (LookupError, ValueError, ArtifactNotFound):
            self.notes.append(
                f"The agent's conversation of run {self.resume.run} is not there: this run's agent begins a new one, "
                "on its files."
            )
            return None
        return target.stem

    def _apply_patch(self, git: ConfinedGit, patch: Path) -> None:
        run = self.resume.run
        try:
            self._fetch(patch_name(run), patch, FILE_MAX)
        except ArtifactNotFound:
            self.notes.append(f"Run {run} has no patch: this run begins with its base commit.")
            return
        apply = ("apply", "--binary", "--allow-empty", "--whitespace=nowarn")
        try:
            git.run(*apply, "/earlier/patch")
        except MachineError as error:
            git.run(*apply, "--reject", "/earlier/patch", check=False)
            self.notes.append(
                f"The patch of run {run} does not fit everywhere ({error.message}): what it does not change is beside "
                "the files in .rej files."
            )

    def _check_out(self, git: ConfinedGit, bundle: Path) -> None:
        """Give the clone the agent's commits, and make the commit that it had checked out its HEAD; files stay."""
        run = self.resume.run
        with suppress(ArtifactNotFound):
            self._fetch(bundle_name(run), bundle, BUNDLE_MAX)
            options = ("--quiet", "--force", "--update-head-ok", "--no-tags", "--no-write-fetch-head")
            try:
                git.run("-c", "fetch.fsckObjects=true", "fetch", *options, "/earlier/bundle", *_REFSPECS)
            except MachineError as error:
                self.notes.append(
                    f"The commits of run {run} could not all be taken ({error.message}); their files are there."
                )
        said = self._part("checked_out")
        commit, ref = said.get("commit"), os.fsdecode(unquote_to_bytes(str(said.get("ref", ""))))
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            return
        try:
            git.run("cat-file", "-e", f"{commit}^{{commit}}")
            if ref.startswith("refs/heads/"):
                git.run("check-ref-format", ref)
                git.run("update-ref", ref, commit)
                git.run("symbolic-ref", "HEAD", ref)
            else:
                git.run("update-ref", "--no-deref", "HEAD", commit)
        except MachineError:
            self.notes.append(
                f"The commit that run {run} had checked out is not there: its work is in the files, as changes to its "
                "base commit."
            )
        git.run("reset", "--quiet")

    def _note_left_out(self) -> None:
        run, count = self.resume.run, self.facts.get("left_out_count")
        if isinstance(count, int) and count > 0:
            names = [str(name)[:_NAME_CHARS] for name in list(self._part("left_out"))[:_NAMED_MOST]]
            self.notes.append(
                f"Of run {run}, {count} files were not collected, or not whole, and are missing or as in the base: "
                f"{', '.join(names)}{' and more' if count > len(names) else ''}."
            )
        listed = self.facts.get("artifacts")
        stored = artifacts.index(self.bucket, TASKS.place(run)) if listed else []
        if any(each.redacted for each in stored if each.name in {patch_name(run), conversation_name(run)}):
            self.notes.append(f"Secret values were taken out of what run {run} left: placeholders are in their places.")

    def _part(self, name: str) -> dict[str, Any]:
        part = self.facts.get(name)
        return part if isinstance(part, dict) else {}

    def _fetch(self, name: str, target: Path, most: int) -> None:
        """Write an artifact of the run to the new file ``target``. Raises ArtifactNotFound, also for a larger one."""
        with target.open("wb") as file:
            self._take(name, most, file.write)

    def _read(self, name: str, most: int) -> bytes:
        parts: list[bytes] = []
        self._take(name, most, parts.append)
        return b"".join(parts)

    def _take(self, name: str, most: int, take: Callable[[bytes], object]) -> None:
        size = 0
        for chunk in artifacts.open_stream(self.bucket, TASKS.place(self.resume.run), name):
            size += len(chunk)
            if size > most:
                raise ArtifactNotFound(f"The artifact '{name}' of run {self.resume.run} is too large.")
            take(chunk)


def _track_ignored(git: ConfinedGit) -> None:
    """Add new files that the ignore files name: the earlier agent had, or no patch would hold them."""
    found = null_separated(git.run("ls-files", "-z", "--others", "--ignored", "--exclude-standard"))
    if found:
        names = b"".join(os.fsencode(name) + b"\0" for name in found)
        git.run("--literal-pathspecs", "add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", input=names)
