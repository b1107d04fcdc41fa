"""The agent's session against guests that keep to the rules, and against those that keep to none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from activities.agent.session import AgentSession, Chunk, Ended, Launch, message_line
from foundation.errors import GuestUnreachable, SessionClosed
from machines.processes import following
from machines.ssh import Completed, GuestShell
from storage.segments import GuestStream
from tests.stand_ins.local_guest import LocalGuest

SECONDS_MOST = 20.0  # of real time, of which a row of these tables takes a few


class Session(AgentSession):
    """A session in a guest that is a directory."""

    def __init__(self, guest: LocalGuest) -> None:
        super().__init__(cast("GuestShell", guest))
        self.guest = guest
        self.bytes: dict[GuestStream, bytes] = {"stdout": b"", "stderr": b""}

    def begin(self, program: str) -> None:
        command = self.guest.program(program)
        self.start(Launch(command=command, workdir=str(self.guest.root), prompt="/begin", environment={"A": "b c"}))

    def until_end(self, most_bytes: int = 10**7) -> Ended | None:
        """The end as the follower sees it; None when there are more bytes, or none within the time."""
        end = time.monotonic() + SECONDS_MOST
        offsets = {stream: len(data) for stream, data in self.bytes.items()}
        for piece in self.follow(offsets):
            if isinstance(piece, Ended):
                return piece
            if isinstance(piece, Chunk):
                assert piece.offset == len(self.bytes[piece.stream])
                self.bytes[piece.stream] += piece.data
            if time.monotonic() > end or sum(map(len, self.bytes.values())) > most_bytes:
                return None
        raise AssertionError


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(following, "_DRAIN_SECONDS", 1.0)
    monkeypatch.setattr(following, "_GONE_SECONDS", 1.0)
    guest = LocalGuest(tmp_path)
    yield Session(guest)
    guest.close()


def test_what_the_agent_gets_and_says_and_how_it_ends(session: Session) -> None:
    session.begin('echo "A=$A"; cat; echo bad >&2; exit 3')
    session.start(Launch(command=["echo", "a second one"], workdir="/", prompt="again", environment={}))
    session.deliver("one", "more")
    session.deliver("one", "more")
    session.close()
    with pytest.raises(SessionClosed):
        session.deliver("two", "too late")
    session.deliver("one", "more")
    assert session.until_end() == Ended(3)
    assert session.bytes["stdout"] == b"A=b c\n" + message_line("/begin") + message_line("more")
    assert session.bytes["stderr"] == b"bad\n"
    # Whoever follows it again learns the same.
    assert Session(session.guest).until_end() == Ended(3)


def test_a_stop_leaves_a_record_and_the_bytes(session: Session) -> None:
    session.begin("trap 'echo leaving; exit 9' TERM; echo begun; while :; do sleep 0.05; done")
    assert session.stop(force=False)
    assert session.until_end() == Ended(9)
    assert session.bytes["stdout"] == b"begun\nleaving\n"


def test_a_killed_agent_leaves_the_record_of_that(session: Session) -> None:
    session.begin("trap '' TERM; echo begun; while :; do sleep 0.05; done")
    assert session.stop(force=True)
    assert session.until_end() == Ended(137)
    assert session.bytes["stdout"] == b"begun\n"


def test_an_agent_that_was_stopped_before_its_start_is_never_started(session: Session) -> None:
    assert session.stop(force=True)
    session.begin("echo started")
    assert session.until_end() == Ended(137)
    assert session.bytes["stdout"] == b""


def test_a_run_of_an_earlier_version_is_followed_to_its_end(session: Session) -> None:
    session.guest.directory.mkdir(parents=True)
    for name, data in {"stdout": b"said\n", "stderr": b"", "exit": b"4 5 0\n"}.items():
        (session.guest.directory / name).write_bytes(data)
    assert session.until_end() == Ended(4)
    assert session.bytes["stdout"] == b"said\n"


# What an agent that is root can do to its exit record, and the exit code that is read of it.
RECORDS = [
    ("echo 0 0 0 >>$R; sleep 60", 0),
    ("head -c 5000 /dev/zero | tr '\\0' 9 >$R; kill -9 $PPID", None),
    ("echo 0 -1 -1 >$R; kill -9 $PPID", None),
    ("echo x y z >$R; kill -9 $PPID", None),
    ("echo 0 1 >$R; kill -9 $PPID", None),
    ("head -c 3000000 /dev/urandom >$R; kill -9 $PPID", None),
    ("rm $R; mkdir $R; kill -9 $PPID", None),
    ("rm $R; ln -s /dev/full $R; kill -9 $PPID", None),
    ("rm $R; ln -s /dev/zero $R; kill -9 $PPID", None),
    ("echo 0 999999999999999999 0 >>$R", 0),
    ("echo gone >>$R; exit 4", 4),
    ("echo 'ended 99999999999 64 -' >>$R; kill -9 $PPID", None),
    ("kill -9 $PPID", 137),
    ("exit 5", 5),
]


@pytest.mark.parametrize(("program", "exit_code"), RECORDS)
def test_every_exit_record_is_an_end(session: Session, program: str, exit_code: int | None) -> None:
    session.begin(f"R={session.guest.volatile}/exit; echo begun; {program}")
    assert session.until_end() == Ended(exit_code)


# What it can do to the files it writes to. The follower has other limits for what does not end here.
FILES = [
    (": >$O; echo less; exit 0", True),
    ("rm $O; echo removed; exit 0", True),
    ("rm $O; echo other >$O; exit 0", True),
    ("rm $O; mkfifo $O; exit 0", True),
    ("rm $O; ln -s /dev/zero $O; exit 0", True),
    ('sleep 0.3; pkill -KILL -f "$F"; echo on; exit 0', True),
    ("cat /dev/zero", False),
]


@pytest.mark.parametrize(("program", "ends"), FILES)
@pytest.mark.parametrize("attempts", [1, 2])
def test_whatever_becomes_of_its_files_is_an_end_or_too_many_bytes(session, program, ends, attempts) -> None:
    session.begin(f"O={session.guest.directory}/stdout; F='{session.guest.root}.* 1 stdout'; echo begun; {program}")
    for _ in range(attempts):
        again = Session(session.guest)
        ended = again.until_end()
        assert isinstance(ended, Ended) if ends and ended else len(again.bytes["stdout"]) > 10**7


def test_a_stop_that_the_guest_does_not_carry_out_is_told(session: Session) -> None:
    session.begin("trap '' TERM; while :; do sleep 0.05; done")
    (session.guest.root / "systemctl").write_text("exit 0")
    assert not session.stop(force=False)
    assert not session.stop(force=True)


def test_a_message_that_cannot_be_noted_leaves_no_part_of_it_in_the_inbox(session: Session) -> None:
    session.begin("cat; sleep 60")
    inbox = session.guest.directory / "inbox"
    before = inbox.read_bytes()
    delivered = session.guest.directory / "delivered"
    delivered.unlink()
    delivered.mkdir()
    with pytest.raises(GuestUnreachable, match="delivered"):
        session.deliver("one", "x" * 100_000)
    assert inbox.read_bytes() == before
    # Nor does the agent hear anything twice: time for its reader to see what became of the inbox.
    time.sleep(1)
    delivered.rmdir()
    delivered.touch()
    session.deliver("two", "after")
    session.close()
    session.guest.run(f"pkill -x sleep -s $(cat {session.guest.root}/pid)", check=False)
    session.until_end()
    assert session.bytes["stdout"] == message_line("/begin") + message_line("after")


def test_a_message_of_which_only_a_part_arrives_is_not_delivered(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.begin("cat")
    run = session.guest.run

    def broken(command: str, *, input: bytes, check: bool) -> Completed:  # noqa: A002 -- as the guest's
        return run(command, input=input[:-5], check=check)

    with monkeypatch.context() as patch:
        patch.setattr(session.guest, "run", broken)
        with pytest.raises(GuestUnreachable, match="part"):
            session.deliver("one", "more")
    session.deliver("one", "more")
    session.close()
    assert session.until_end() == Ended(0)
    assert session.bytes["stdout"] == message_line("/begin") + message_line("more")
