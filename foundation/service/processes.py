"""Processes of a guest as messages: what is to be started, and what is known of one that was."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# As the guest's user database and shell take them: a name, or uid, or uid:gid.
_USER = r"^(?:[a-z_][a-z0-9_-]{0,31}|\d{1,10}(?::\d{1,10})?)$"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
# What Linux takes for one argument, and a part of what it takes for all of them and the environment together.
_ARGUMENT_BYTES = 128 * 1024
_TOGETHER_BYTES = 1024 * 1024
_WORDS_MOST = 4096
_SECONDS_MOST = 30 * 24 * 3600


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate); send Unicode text") from None
    if size >= _ARGUMENT_BYTES:
        raise ValueError(f"is longer than {_ARGUMENT_BYTES - 1} bytes; put more into a file or on stdin")
    return value


Text = Annotated[str, AfterValidator(_text)]


class Terminal(BaseModel):
    """The terminal that a process gets, in characters."""

    model_config = ConfigDict(extra="forbid")

    cols: int = Field(80, ge=1, le=10_000)
    rows: int = Field(24, ge=1, le=10_000)
    term: str = Field("xterm-256color", pattern=r"^[A-Za-z0-9][A-Za-z0-9+._-]{0,63}$")


class Limits(BaseModel):
    """What a process may use at most; null is no limit but the machine's own."""

    model_config = ConfigDict(extra="forbid")

    cpu_seconds: int | None = Field(None, ge=1, le=_SECONDS_MOST)
    memory_bytes: int | None = Field(None, ge=2**20, lt=2**63)
    open_files: int | None = Field(None, ge=16, le=2**20)
    processes: int | None = Field(None, ge=1, le=2**20)
    timeout: float | None = Field(None, gt=0, le=_SECONDS_MOST, description="Seconds from start to end by the clock")


class Command(BaseModel):
    """What is to be run, and as what: exactly one of ``argv`` and ``shell``, a line for the user's shell.

    ``directory`` is absolute; without it, the workspace if there is one, else the user's home.
    """

    model_config = ConfigDict(extra="forbid")

    argv: list[Text] | None = Field(None, min_length=1, max_length=_WORDS_MOST)
    shell: Text | None = Field(None, min_length=1)
    user: str = Field("agent", pattern=_USER)
    directory: Text | None = Field(None, pattern=r"^/", max_length=4095)
    environment: dict[str, Text] = Field({}, max_length=_WORDS_MOST)
    limits: Limits = Field(default_factory=Limits)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.argv is None) == (self.shell is None):
            raise ValueError("needs exactly one of argv and shell")
        if self.argv is not None and not self.argv[0]:
            raise ValueError("argv begins with the name of a program")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment has '{name[:80]}', which is no name of a variable")
        words = [*(self.argv or []), self.shell or "", *self.environment, *self.environment.values()]
        if sum(len(word.encode()) + 1 for word in words) > _TOGETHER_BYTES:
            raise ValueError(f"arguments and environment have more than {_TOGETHER_BYTES} bytes together")
        return self


class ProcessSpec(Command):
    """A process to be started.

    ``key`` is the caller's: the same key starts nothing twice. ``stdin`` says whether something will be fed; without
    it, stdin is empty. With ``keep``, its output is stored as it comes, and can be read when its machine is gone.
    """

    key: str = Field(pattern=rf"^{KEY.pattern}$")
    stdin: bool = False
    keep: bool = False
    terminal: Terminal | None = None


class ProcessRecord(BaseModel):
    """What is known of a process. ``lost`` is one of which nobody can say how it ended.

    A process that a signal ended has ``signal``, its name without SIG, and no exit code. ``reason`` is why it was
    stopped, if a limit was: ``timeout``, ``output`` (more than is kept of it) or ``memory``.
    """

    model_config = ConfigDict(extra="ignore")

    key: str
    state: Literal["running", "exited", "lost"]
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class Processes(BaseModel):
    """The processes of a machine, oldest first."""

    model_config = ConfigDict(extra="ignore")

    processes: list[ProcessRecord]


class StdinTaken(BaseModel):
    """How many bytes a process's stdin has been given in all."""

    model_config = ConfigDict(extra="ignore")

    bytes: int


class SentSignal(BaseModel):
    """A signal to all of a process's processes, by its name: TERM, INT, KILL, USR1 and so on."""

    model_config = ConfigDict(extra="forbid")

    signal: str = Field(pattern=r"^[A-Z][A-Z0-9+-]{0,15}$", examples=["TERM"])
