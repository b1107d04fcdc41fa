"""Artifacts of a run: what changed on its workspace disk, and the files its patterns name, into the bucket."""

from __future__ import annotations

import json
import shutil
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activities.agent.conversation import CONVERSATION_BYTES, conversation_id, project_at
from activities.artifacts.bundle import FETCH, write_bundle
from activities.artifacts.changes import Changes
from activities.artifacts.confined_git import ConfinedGit
from activities.artifacts.guest_repository import GuestRepository, copy_objects, read_repository
from activities.artifacts.metadata import change_facts, run_facts
from activities.artifacts.patch import write_patch
from activities.artifacts.quiescence import quiesced
from activities.artifacts.reading import BaseEntry, Reading, base_entries, read_tree, submodules
from activities.artifacts.selection import Selection, select
from activities.artifacts.submodules import Submodule, opened_submodules
from activities.artifacts.tree import is_directory, open_regular, regular_files, set_aside
from activities.repository.mirror import reading
from foundation.errors import ArtifactNotFound, MachineNotFound, TaskyardError
from foundation.settings import Settings
from foundation.units import format_size
from machines.disks.workspace import NO_FILE, DiskUnreadable, Extraction, WorkspaceDisk, opened
from machines.host import MachineHost
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS, Place
from storage.names import METADATA, bundle_name, conversation_name, names_of, patch_name, redacted_text, untracked_name
from storage.redaction import Redactor
from workflows import steps
from workflows.runs.messages import NetworkUse
from workflows.runs.requests import CollectRequest

_LEFT_OUT_MOST = 500
_NAMES_MOST = 3
_REFS_TOLD = 12
_NAME_CHARS = 100
_CONVERSATION = "conversation"
# Reading the disk and comparing it; the rest of the step's time limit is for the bucket.
_WORK_SECONDS = 0.8 * steps.COLLECT.limit.total_seconds()


def told(bucket: Bucket, place: Place) -> tuple[list[str], NetworkUse | None]:
    """The notes of an attempt that stored everything, and what the guest had asked of the network by then."""
    try:
        metadata = json.loads(b"".join(stored.open_stream(bucket, place, METADATA)))
    except ArtifactNotFound:
        return [], None
    use = metadata.get("network")
    return [str(note) for note in metadata.get("notes", [])], NetworkUse.model_validate(use) if use else None


@dataclass
class Collection:
    """One look at what a run left. ``failure`` is the first thing that went wrong; the rest was stored all the same."""

    settings: Settings
    host: MachineHost
    bucket: Bucket
    request: CollectRequest
    redactor: Redactor
    use: NetworkUse | None = None
    artifacts: list[stored.StoredArtifact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extraction: Extraction = field(default_factory=Extraction)
    changes: Changes | None = None
    ignored: set[str] = field(default_factory=set)
    selection: Selection = field(default_factory=Selection)
    bundled: dict[str, str] = field(default_factory=dict)
    head: str | None = None
    checked_out: dict[str, str] | None = None
    conversation: dict[str, str] | None = None
    failure: TaskyardError | None = None

    def run(self) -> list[stored.StoredArtifact]:
        """Store what can be read, and give what is stored; ``notes`` say what is not."""
        directory = self.settings.staging / self.request.machine_id / "collect"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            tree = directory / "tree"
            image = self._image()
            if image is None and (earlier := stored.index(self.bucket, self._place)):
                self.notes, self.use = told(self.bucket, self._place)
                return earlier  # of an attempt that still had the disk
            if self._work(image, tree, directory):
                self._pattern_files(tree)
                self._store_conversation(directory / _CONVERSATION)
            self.notes = [self.redactor.redact_text(note) for note in self.notes]
            self._store(METADATA, json.dumps(self._metadata(), indent=2, ensure_ascii=False).encode())
            stored.write_index(self.bucket, self._place, self.artifacts)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return self.artifacts

    @property
    def _place(self) -> Place:
        return TASKS.place(self.request.task_id)

    def _work(self, image: Path | None, tree: Path, directory: Path) -> bool:
        """Read the disk into ``tree``, and store what was changed. False when there is nothing to be read."""
        if image is None:
            self.notes.append("There was no workspace disk on this host to collect from.")
            return False
        with ExitStack() as stack:
            git, base = self._base(stack, directory)
            staged = self._submodules(stack, git, directory)
            known = base | {f"{each.path}/{path}": entry for each in staged for path, entry in each.base.items()}
            try:
                with (
                    quiesced(self.host, self.request.machine_id, self.notes) as dirty,
                    opened(image, directory, dirty=dirty) as disk,
                ):
                    found = read_tree(disk, tree, known, git)
                    guest = self._guest_repository(disk, git, found)
                    self._copy_conversation(disk, directory / _CONVERSATION)
            except TaskyardError as error:
                self._failed(f"The workspace disk could not be read: {error.message}", error)
                return False
            self.extraction, self.ignored = found.extraction, found.ignored
            if git is not None:
                # Further work trees are no new files of this one, nor are submodules.
                apart = [*found.worktrees, *(each.path for each in staged)]
                places = {path: directory / f"apart-{number}" for number, path in enumerate(apart)}
                there = [each for each in staged if is_directory(tree, each.path)]
                with set_aside(tree, places) as aside:
                    for each in there:
                        # One whose files are all gone.
                        places[each.path].mkdir(exist_ok=True)
                    self._changes(git, base, tree, found, [(each, places[each.path]) for each in there])
                    trees = {name: places[path] for path, name in found.worktrees.items() if path in aside}
                    self._bundle(git, guest, found, trees)
        self._note_unread()
        return True

    def _base(self, stack: ExitStack, directory: Path) -> tuple[ConfinedGit | None, dict[str, BaseEntry]]:
        """Git for the comparison, usable while the stack is open, and what the base commit holds."""
        scratch = directory / "git"
        scratch.mkdir()
        try:
            mirror = stack.enter_context(reading(self.settings, self.request.repository.url, self.request.mirror))
            git = ConfinedGit(mirror, scratch, time.monotonic() + _WORK_SECONDS)
            git.init(self.request.base_commit)
            base = base_entries(git, self.request.base_commit)
        except TaskyardError as error:
            self._failed(f"The patch could not be made: {error.message}", error)
            return None, {}
        return git, base

    def _submodules(self, stack: ExitStack, git: ConfinedGit | None, directory: Path) -> list[Submodule]:
        if git is None:
            return []
        try:
            return list(opened_submodules(stack, self.settings, self.request.submodules, git, directory))
        except TaskyardError as error:
            # What lies in them is in the patch as new files then.
            self._failed(f"The submodules could not be compared with what they held: {error.message}", error)
            return []

    def _guest_repository(self, disk: WorkspaceDisk, git: ConfinedGit | None, found: Reading) -> GuestRepository:
        if git is None:
            return GuestRepository()
        guest = read_repository(disk, self.request.base_commit, found.worktrees)
        guest.notes += copy_objects(disk, git.mirror, git.scratch / "guest")
        if (commit := guest.head) is not None:
            self.checked_out = {"ref": self._text(guest.checked_out), "commit": commit}
        return guest

    def _copy_conversation(self, disk: WorkspaceDisk, target: Path) -> None:
        """Copy the agent's conversation from the disk, if Claude Code has left one there."""
        machine_id = self.request.machine_id
        for entry in disk.entries:
            if (project := project_at(entry.path, machine_id)) is None or not stat.S_ISREG(entry.mode):
                continue
            if entry.size > CONVERSATION_BYTES:
                self.notes.append(
                    f"The agent's conversation has {format_size(entry.size)}, more than "
                    f"{format_size(CONVERSATION_BYTES)}, and is not kept: a run can continue the files alone."
                )
            elif disk.copy(entry, target):
                self.conversation = {"id": conversation_id(machine_id), "project": project}
            return

    def _store_conversation(self, copy: Path) -> None:
        if self.conversation is not None:
            with copy.open("rb") as content:
                self._store(conversation_name(self.request.task_id), content, hidden=True)

    def _bundle(self, git: ConfinedGit, guest: GuestRepository, found: Reading, trees: dict[str, Path]) -> None:
        """Store the agent's work that is not in its work tree."""
        redactor = self.redactor if self.request.secrets else None
        try:
            bundle = write_bundle(git, self.request.base_commit, guest, trees, found.reason, redactor)
        except TaskyardError as error:
            self._failed(f"The bundle of the agent's further work could not be made: {error.message}", error)
            return
        self.notes += bundle.notes
        if self.changes:
            self.changes.left_out |= bundle.left_out
        if bundle.path is None:
            return
        name = bundle_name(self.request.task_id)
        with bundle.path.open("rb") as content:
            self._store(name, content)
        self.head = bundle.head
        self.bundled = {self._text(ref): self._text(what) for ref, what in bundle.refs.items()}
        if bundle.beside_patch:
            what = self._named(bundle.beside_patch, _REFS_TOLD)
            self.notes.append(f"Work that is not in the patch is in {name} ({FETCH.format(name)}): {what}.")

    def _image(self) -> Path | None:
        staged = self.settings.staging / self.request.machine_id / "workspace.raw"
        try:
            attached = self.host.workspace(self.request.machine_id)
        except MachineNotFound:
            attached = staged
        return next((image for image in (attached, staged) if image.is_file()), None)

    def _changes(
        self,
        git: ConfinedGit,
        base: dict[str, BaseEntry],
        tree: Path,
        found: Reading,
        parts: list[tuple[Submodule, Path]],
    ) -> None:
        task_id = self.request.task_id
        patch = tree.parent / "patch"
        redactor = self.redactor if self.request.secrets else None
        try:
            self.changes = write_patch(
                git,
                self.request.base_commit,
                tree,
                patch,
                tracked=found.tracked,
                unread=found.reason,
                links=submodules(base),
                redactor=redactor,
            )
            for submodule, place in parts:
                self.changes.add(submodule.write_patch(place, patch, found, redactor))
        except TaskyardError as error:
            self._failed(f"The patch could not be made: {error.message}", error)
            return
        self.notes += found.notes + self.changes.notes
        own = {submodule.path for submodule, _ in parts}
        if repositories := [path for path in found.repositories if path not in own]:
            self.notes.append(
                "Below the workspace there are repositories of their own; their files are in the patch, their history "
                f"is not: {self._named(repositories)}."
            )
        with patch.open("rb") as content:
            self._store(patch_name(task_id), content)
        if self.artifacts[-1].redacted:
            self.notes.append("A secret value was taken out of the patch; it may not apply as it is.")
        untracked = "".join(f"{self._text(name)}\n" for name in self.changes.untracked)
        self._store(untracked_name(task_id), untracked.encode())

    def _note_unread(self) -> None:
        """Say what was not read from the disk, and what of it the patch leaves as it was."""
        extraction = self.extraction
        if extraction.repaired:
            self.notes.append("The workspace disk was not cleanly closed; a mended copy of it was read.")
        if not extraction.whole_root:
            reason = f"The root directory of the workspace could not be read whole: {extraction.unlisted['']}."
            self._failed(reason, DiskUnreadable(reason))
        left_out = [path for path, reason in extraction.left_out.items() if reason != NO_FILE]
        self._note_paths("Not read whole from the disk", "directory", [path for path in extraction.unlisted if path])
        self._note_paths("Not read from the disk", "file", left_out)
        if self.changes:
            self._note_paths("Not compared, and in the patch as in the base", "file", list(self.changes.unread))
            self._note_paths(
                "Not in the patch, as they are too large, refused by git, or binary with a secret in them",
                "new file",
                list(self.changes.left_out),
            )

    def _note_paths(self, what: str, kind: str, paths: list[str]) -> None:
        if paths:
            plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
            count = f"1 {kind}" if len(paths) == 1 else f"{len(paths)} {plural}"
            self.notes.append(f"{what}: {count} ({self._named(paths)}).")

    def _named(self, paths: Sequence[str], most: int = _NAMES_MOST) -> str:
        """The first of some paths as part of a sentence."""
        texts = [self._text(path) for path in paths[:most]]
        names = [name if name.isprintable() else ascii(name) for name in texts]
        return ", ".join(name[:_NAME_CHARS] for name in names) + (" and more" if len(paths) > len(names) else "")

    def _text(self, path: str) -> str:
        return redacted_text(path, self.redactor)

    def _pattern_files(self, tree: Path) -> None:
        selection = select(regular_files(tree), self.request.patterns, self.ignored)
        self.selection = selection
        self.notes += selection.notes
        for path, name in names_of(selection.files, self.request.task_id, self.redactor).items():
            with open_regular(tree, path) as content:
                self._store(name, content, path)

    def _store(self, name: str, content: Any, path: str | None = None, *, hidden: bool = False) -> None:
        artifact = stored.store(
            self.bucket, self._place, name, content, path=path, redactor=self.redactor, hidden=hidden
        )
        self.artifacts.append(artifact)

    def _failed(self, note: str, error: TaskyardError) -> None:
        self.notes.append(note)
        # What git says may name files of the guest, and the sentence goes into history.
        error.message = self.redactor.redact_text(error.message)
        self.failure = self.failure or error

    def _metadata(self) -> dict[str, Any]:
        unlisted = {path or ".": f"a directory not read whole: {why}" for path, why in self.extraction.unlisted.items()}
        left_out = unlisted | self.extraction.left_out
        if self.changes:
            unread = {path: f"as in the base: {why}" for path, why in self.changes.unread.items()}
            left_out = unread | left_out | self.changes.left_out
        first = dict(list(left_out.items())[:_LEFT_OUT_MOST])
        return {
            **run_facts(self.request, self.use),
            "changes": change_facts(self.changes) if self.changes else None,
            "bundle": self.bundled,
            "checked_out": self.checked_out,
            "conversation": self.conversation,
            "workspace": {"files": self.extraction.files, "bytes": self.extraction.total_bytes},
            "artifacts": [
                {"name": each.name, "path": each.path, "size_bytes": each.size_bytes, "sha256": each.sha256}
                for each in self.artifacts
            ],
            "patterns_without_match": self.selection.unmatched,
            "patterns_cut": {
                pattern: {"matched": matched, "stored": count}
                for pattern, (matched, count) in self.selection.cut.items()
            },
            "left_out": {self._text(path): reason for path, reason in first.items()},
            "left_out_count": len(left_out),
            "notes": self.notes,
        }
