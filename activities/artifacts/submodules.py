"""The submodules that a workspace began with: what each held, and its part of the patch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from activities.artifacts.changes import Changes
from activities.artifacts.confined_git import ConfinedGit
from activities.artifacts.patch import write_patch
from activities.artifacts.reading import BaseEntry, Reading, base_entries, submodules
from activities.repository.mirror import reading
from foundation.settings import Settings
from storage.redaction import Redactor
from workflows.runs.requests import StagedSubmodule


@dataclass(frozen=True)
class Submodule:
    """A submodule as it was staged, and git for its comparison."""

    path: str
    commit: str
    git: ConfinedGit
    base: Mapping[str, BaseEntry]

    def write_patch(self, tree: Path, patch: Path, found: Reading, redactor: Redactor | None) -> Changes:
        """Append the changes of its files, which lie in ``tree``, to the patch. Raises MachineError."""
        part = self.git.scratch / "patch"
        changes = write_patch(
            self.git,
            self.commit,
            tree,
            part,
            unread=lambda path: found.reason(f"{self.path}/{path}"),
            links=submodules(self.base),
            redactor=redactor,
            above=self.path,
        )
        with patch.open("ab") as whole, part.open("rb") as content:
            shutil.copyfileobj(content, whole)
        return changes.below(self.path)


def opened_submodules(
    stack: ExitStack, settings: Settings, staged: Sequence[StagedSubmodule], git: ConfinedGit, directory: Path
) -> Iterator[Submodule]:
    """The submodules, usable while the stack is open. Raises RepositoryNotFound and MachineError."""
    for number, each in enumerate(staged):
        scratch = directory / f"submodule-git-{number}"
        scratch.mkdir()
        mirror = stack.enter_context(reading(settings, each.url, each.mirror))
        own = replace(git, mirror=mirror, scratch=scratch)
        own.init(each.commit)
        yield Submodule(each.path, each.commit, own, base_entries(own, each.commit))
