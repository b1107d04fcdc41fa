"""What the proxy answers when it lets nothing through: a status, and one sentence as reason phrase and as the body."""

from __future__ import annotations

from dataclasses import dataclass

from worker.egress.decisions import Outcome

#: The header that tells what came of a request: blocked or failed.
VERDICT_HEADER = "Taskyard-Verdict"
#: How long a guest that still sends is listened to, so that it can read why it was refused.
LINGER_SECONDS = 2.0
# A parser's words may hold all that it was given.
_REASON_MOST = 200
BLOCKED, BAD_REQUEST, TIMED_OUT, UNREACHABLE, OVERLOADED = 403, 400, 408, 502, 503


@dataclass(eq=False)
class Refusal(Exception):
    """A request that comes to nothing. ``host`` and ``port`` are what it was for, empty and 0 where that is unknown."""

    status: int
    sentence: str
    verdict: Outcome
    host: str = ""
    port: int = 0

    def headers(self) -> dict[str, str]:
        """The header fields of the answer."""
        return {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(self.body())),
            "Connection": "close",
            VERDICT_HEADER: self.verdict,
        }

    def body(self) -> bytes:
        """The body of the answer."""
        return f"{self.sentence}\n".encode()

    def answer(self) -> bytes:
        """The whole answer as HTTP/1.1 writes it."""
        reason = "".join(letter if " " <= letter <= "~" else "?" for letter in self.sentence)
        lines = [f"HTTP/1.1 {self.status} {reason}", *(f"{name}: {value}" for name, value in self.headers().items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body()


def blocked(host: str, port: int, reason: str = "") -> Refusal:
    """The policy does not let the guest reach the host; ``reason`` says why, if not for want of a rule."""
    more = f" ({reason})" if reason else ""
    return Refusal(BLOCKED, f"blocked by the task's network policy: {host}{more}", "blocked", host, port)


def bad_request(reason: str) -> Refusal:
    """What was sent is no request that the proxy could take one way only."""
    return Refusal(BAD_REQUEST, f"this is no request for a proxy: {reason[:_REASON_MOST]}", "blocked")


def too_slow(part: str = "head") -> Refusal:
    """The request has begun and does not come whole in time."""
    return Refusal(TIMED_OUT, f"the request's {part} did not come in time", "blocked")


def unreachable(host: str, port: int, sentence: str) -> Refusal:
    """The host may be reached and cannot be."""
    return Refusal(UNREACHABLE, sentence, "failed", host, port)
