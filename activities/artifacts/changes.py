"""The figures of a patch: how much it changes, and what is not in it, or in it as it was."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Changes:
    """Figures of a patch. ``untracked`` are new files that the agent did not put under version control.

    ``unread`` are files of the base that are in the patch as they were, with the reason.
    """

    files: int = 0
    insertions: int = 0
    deletions: int = 0
    untracked: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def below(self, path: str) -> Changes:
        """The same of a tree that lies at a path of the workspace."""
        return Changes(
            self.files,
            self.insertions,
            self.deletions,
            [f"{path}/{name}" for name in self.untracked],
            {f"{path}/{name}": reason for name, reason in self.left_out.items()},
            {f"{path}/{name}": reason for name, reason in self.unread.items()},
            [f"{path}: {note}" for note in self.notes],
        )

    def add(self, other: Changes) -> None:
        """Count the changes of another part of the workspace too."""
        self.files += other.files
        self.insertions += other.insertions
        self.deletions += other.deletions
        self.untracked = sorted([*self.untracked, *other.untracked])
        self.left_out |= other.left_out
        self.unread |= other.unread
        self.notes += other.notes
