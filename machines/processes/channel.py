"""What channels over SSH need beside what paramiko gives: news without a waiting thread, limits, signals of exits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import paramiko
from paramiko.buffered_pipe import BufferedPipe
from paramiko.common import MSG_CHANNEL_REQUEST

# Twice the window that a channel has, within which the guest may send.
_UNREAD_MOST = 4 * 2**20
_EXIT_SIGNAL = "taskyard_exit_signal"
_SIGNAL_CHARS = 16


def watch(channel: paramiko.Channel, call: Callable[[], None]) -> None:
    """Have ``call`` called whenever the channel has news: bytes, room for bytes, its command's end, its own end.

    It is called in the connection's own thread, which must not wait.
    """
    event = _Call(call)
    channel.in_buffer.set_event(event)
    channel.in_stderr_buffer.set_event(event)
    channel.out_buffer_cv = _CallingCondition(channel.lock, call)
    channel.status_event = _CallingEvent(call)


def exit_signal(channel: paramiko.Channel) -> str | None:
    """The signal that ended the channel's command, its name without SIG; None when none did, or none is known yet."""
    return getattr(channel, _EXIT_SIGNAL, None)


class _Call(threading.Event):
    """Stands where paramiko takes an event; it is shared, so that nobody clears it."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def set(self) -> None:
        self._call()

    def clear(self) -> None:
        return


class _CallingEvent(threading.Event):
    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def set(self) -> None:
        super().set()
        self._call()


class _CallingCondition(threading.Condition):
    def __init__(self, lock: Any, call: Callable[[], None]) -> None:
        super().__init__(lock)
        self._call = call

    def notify_all(self) -> None:
        super().notify_all()
        self._call()


class _Pipe(BufferedPipe):  # type: ignore[type-arg]  # generic for type checkers alone
    """What came over a channel and was not read yet. A guest that sends more than it may loses its connection."""

    def feed(self, data: bytes) -> None:
        if len(self) > _UNREAD_MOST:
            raise paramiko.SSHException("the guest sends more than it may")
        super().feed(data)


def _take_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    position = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        setattr(channel, _EXIT_SIGNAL, message.get_text()[:_SIGNAL_CHARS])
        channel.status_event.set()
    message.packet.seek(position)
    channel._handle_request(message)  # type: ignore[attr-defined]  # noqa: SLF001 -- as above


def limit_unread(channel: paramiko.Channel) -> None:
    """Hold the guest to what it may send before it is read. For a channel over which nothing has come yet."""
    channel.in_buffer, channel.in_stderr_buffer = _Pipe(), _Pipe()


class Connection(paramiko.Transport):
    """A connection that keeps the signal with which a command ended, which paramiko leaves out."""

    _channel_handler_table: ClassVar = {
        **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]  # noqa: SLF001 -- it has no other place for it
        MSG_CHANNEL_REQUEST: _take_request,
    }
