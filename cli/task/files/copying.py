"""`sandbox task cp`: files and trees between this host and the machine of a run, as `docker cp` copies them."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import completion
from cli.options import asks_server, open_client
from foundation.errors import Conflict, FileNotFound, TaskyardError, UsageError, WrongFileType

if TYPE_CHECKING:
    from client import FileInfo, TaskClient
    from foundation.archives import Members

_NANOSECONDS = 10**9


@dataclass(frozen=True)
class Place:
    """One end of a copy: a path in the machine of a run, or, without one, of this host."""

    task_id: str | None
    path: bytes

    @property
    def shown(self) -> str:
        path = self.path.decode(errors="replace")
        return path if self.task_id is None else f"{self.task_id}:{path}"

    @property
    def wants_directory(self) -> bool:
        """It is written as only a directory is."""
        return self.path.endswith((b"/", b"/.")) or self.path == b"."

    @property
    def contents_only(self) -> bool:
        """What is in the directory is meant, not the directory."""
        return self.path.endswith(b"/.") or self.path == b"."

    @property
    def name(self) -> bytes:
        return os.path.basename(os.path.normpath(self.path))

    def below(self, name: bytes) -> bytes:
        return os.path.join(self.path, name)


@asks_server
def copy(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", show_default=False, help="ID:PATH, PATH or '-'.", autocompletion=completion.places
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST", show_default=False, help="PATH, ID:PATH or '-'.", autocompletion=completion.places
        ),
    ],
    follow_link: Annotated[
        bool, typer.Option("--follow-link", "-L", help="Copy what SRC leads to, if a link.")
    ] = False,
    archive: Annotated[bool, typer.Option("--archive", "-a", help="Keep owners, by number; it takes root.")] = False,
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", metavar="USER", help="The machine's user that does it; default: agent."),
    ] = None,
) -> None:
    """Copy files and directories into the machine of a run, or out of it.

    Of a directory that ends in /. the contents are copied. A path in the machine is absolute, or relative to the
    workspace. With '-' a tar archive is read from stdin, or written to stdout. Modes, times and links are kept.
    Whatever breaks the copying off, no file is left half.

    Example: sandbox task cp 1ssrg4b-k3f9q:src/. src
    """
    origin, goal = parse_place(source), parse_place(target)
    if (origin.task_id is None) is (goal.task_id is None):
        raise UsageError("One of SRC and DST is a path in a machine, ID:PATH, and the other one of this host.")
    if target == "-" and sys.stdout.isatty():
        raise UsageError("A terminal is no place for an archive; redirect stdout, or name a directory.")
    from cli.task.reading import progress_bar

    with open_client(ctx) as client, progress_bar(origin.shown) as told:
        copier = _Copier(client, told, user, follow=follow_link, keep_owners=archive)
        try:
            if origin.task_id is not None:
                copier.fetch(origin.task_id, origin, goal)
            else:
                copier.send(str(goal.task_id), origin, goal)
        except OSError as error:
            name = error.filename2 or error.filename
            place = goal.shown if name is None else os.fsdecode(name)
            raise TaskyardError(f"'{place}': {error.strerror or error}.") from error
    copier.tell(goal)


def parse_place(text: str) -> Place:
    """What an argument names. A local path with a colon begins with a slash or a dot. Raises UsageError."""
    task_id, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        if not text:
            raise UsageError("A path is empty; '.' is the current directory.")
        return Place(None, os.fsencode(text))
    if not task_id:
        raise UsageError(f"'{text}' names no run before the colon; a path of this host is written './{text}'.")
    return Place(task_id, os.fsencode(path) or b".")


class _Copier:
    def __init__(
        self, client: TaskClient, told: Callable[[int, int], None], user: str | None, *, follow: bool, keep_owners: bool
    ) -> None:
        self._client = client
        self._user = user
        self._follow = follow
        self._keep_owners = keep_owners
        self._done = 0
        self._size = 0
        self._told = told
        self._left_out: list[str] = []

    def fetch(self, task_id: str, origin: Place, goal: Place) -> None:
        """From the machine."""
        info = self._client.file_info(
            task_id, origin.path, follow=self._follow or origin.wants_directory, user=self._user
        )
        if goal.path == b"-":
            self._write_out(task_id, origin, info)
        elif info.type == "directory":
            self._fetch_tree(task_id, origin, goal)
        else:
            self._fetch_one(task_id, origin, goal, info)

    def send(self, task_id: str, origin: Place, goal: Place) -> None:
        """Into the machine."""
        found = self._look(task_id, goal.path)
        if origin.path == b"-":
            if found is None or found.type != "directory":
                raise WrongFileType(f"'{goal.shown}' is no directory; an archive is laid out in one that is there.")
            extracted = self._client.upload_archive(
                task_id, goal.path, sys.stdin.buffer, keep_owners=self._keep_owners, user=self._user
            )
            self._left_out += extracted.skipped
            return
        follow = self._follow or origin.wants_directory
        mode = (os.stat if follow else os.lstat)(origin.path).st_mode
        if stat.S_ISDIR(mode):
            self._send_tree(task_id, origin, goal, found)
        elif origin.wants_directory:
            raise WrongFileType(f"'{origin.shown}' is no directory.")
        else:
            self._send_one(task_id, origin, goal, found, is_link=stat.S_ISLNK(mode))

    def tell(self, goal: Place) -> None:
        """Say what was done."""
        from cli.streams import clean
        from cli.terminal import talk

        for name in self._left_out:
            talk().print(f"Left out, as it is neither a file nor a link: {clean(name)}", markup=False, soft_wrap=True)
        if goal.path != b"-":
            talk().print(f"Copied {self._done:,} bytes to {clean(goal.shown)}.", markup=False, soft_wrap=True)

    def _fetch_tree(self, task_id: str, origin: Place, goal: Place) -> None:
        from cli.task.files import trees

        root = os.path.normpath(goal.path)
        if os.path.isdir(goal.path):
            root = goal.path if origin.contents_only else goal.below(origin.name)
            if os.path.lexists(root) and not os.path.isdir(root):
                raise Conflict(f"'{os.fsdecode(root)}' is there already, and is no directory.")
        elif os.path.lexists(root):
            raise WrongFileType(f"'{goal.shown}' is no directory; a directory does not go into a file.")
        with self._members(task_id, origin.path) as members:
            trees.lay_out(members, root, self._moved, keep_owners=self._keep_owners)
            self._left_out += members.skipped

    def _fetch_one(self, task_id: str, origin: Place, goal: Place, info: FileInfo) -> None:
        from cli.task.files import trees

        path = goal.path
        if os.path.isdir(path):
            path = goal.below(origin.name)
        elif goal.wants_directory:
            raise FileNotFound(f"'{goal.shown}' is no directory; make it first, or leave out the slash.")
        if os.path.isdir(path):
            raise WrongFileType(f"'{os.fsdecode(path)}' is a directory; a file does not take its place.")
        if info.type == "symlink":
            trees.make_link(path, raw(info.target, info.target_base64))
            return
        self._size = info.size
        pieces = self._client.read_file(task_id, origin.path, user=self._user)
        modified = int(info.modified_at.timestamp()) * _NANOSECONDS + info.modified_at.microsecond * 1000
        trees.write_file(path, pieces, self._moved, mode=int(info.mode, 8) & 0o777, modified_ns=modified)

    def _write_out(self, task_id: str, origin: Place, info: FileInfo) -> None:
        from cli.task.files import trees
        from foundation import archives
        from foundation.archives import Member

        if info.type == "symlink":
            link = Member("symlink", origin.name, 0o777, 0, target=raw(info.target, info.target_base64))
            sys.stdout.buffer.write(archives.head(link) + archives.END)
            return
        with self._members(task_id, origin.path) as members:
            contents = origin.contents_only or info.type != "directory"
            for piece in trees.renamed(members, b"" if contents else origin.name):
                sys.stdout.buffer.write(piece)
                self._moved(len(piece))
        sys.stdout.flush()

    def _send_tree(self, task_id: str, origin: Place, goal: Place, found: FileInfo | None) -> None:
        from cli.task.files import trees
        from foundation.archives import gzipped

        if found is not None and found.type != "directory":
            raise WrongFileType(f"'{goal.shown}' is no directory; a directory does not go into a file.")
        root = goal.path
        if found is None:
            self._need_parent(task_id, goal)
        elif not origin.contents_only:
            root = goal.below(os.path.basename(os.path.abspath(origin.path)))
        # A link to a directory is entered.
        tree = trees.packed(os.path.join(origin.path, b"."), self._moved, self._leave_out)
        extracted = self._client.upload_archive(
            task_id, root, gzipped(tree), "tar.gz", keep_owners=self._keep_owners, user=self._user
        )
        self._left_out += extracted.skipped

    def _send_one(self, task_id: str, origin: Place, goal: Place, found: FileInfo | None, *, is_link: bool) -> None:
        from cli.task.files import trees

        path = goal.path
        if found is not None and found.type == "directory":
            path = goal.below(origin.name)
        elif found is None:
            if goal.wants_directory:
                raise FileNotFound(f"'{goal.shown}' is no directory; make it first, or leave out the slash.")
            self._need_parent(task_id, goal)
        if is_link:
            above, name = os.path.split(path)
            self._client.upload_archive(
                task_id, above or b".", trees.one_link(name, origin.path), "tar", user=self._user
            )
            return
        facts = os.stat(origin.path)
        self._size = facts.st_size
        self._client.write_file(
            task_id,
            path,
            trees.file_pieces(origin.path, self._moved),
            mode=f"{stat.S_IMODE(facts.st_mode) & 0o777:o}",
            modified_ns=facts.st_mtime_ns,
            user=self._user,
        )

    def _need_parent(self, task_id: str, goal: Place) -> None:
        above = os.path.dirname(os.path.normpath(goal.path)) or b"."
        parent = self._look(task_id, above)
        if parent is None or parent.type != "directory":
            raise FileNotFound(
                f"There is no directory '{above.decode(errors='replace')}' in the machine; make it first."
            )

    def _look(self, task_id: str, path: bytes) -> FileInfo | None:
        try:
            return self._client.file_info(task_id, path, follow=True, user=self._user)
        except FileNotFound:
            return None

    @contextmanager
    def _members(self, task_id: str, path: bytes) -> Iterator[Members]:
        from foundation.archives import Gunzipped, Members

        with closing(self._client.download_archive(task_id, path, "tar.gz", user=self._user)) as pieces:
            yield Members(Gunzipped(Pieces(pieces)))

    def _leave_out(self, path: bytes) -> None:
        self._left_out.append(path.decode(errors="replace"))

    def _moved(self, size: int) -> None:
        self._done += size
        self._told(self._done, self._size)


class Pieces:
    """Pieces as something to read from."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = memoryview(piece)
        given, self._left = self._left[:size], self._left[size:]
        return bytes(given)


def raw(text: str | None, coded: str | None) -> bytes:
    """The bytes of a path that the server tells."""
    from foundation.service.files import name_from

    return name_from({"base64": coded} if coded is not None else text or "")
