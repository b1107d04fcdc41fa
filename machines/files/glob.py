"""Glob patterns as the expressions with which the guest searches."""

from __future__ import annotations

from foundation.errors import InvalidParameter

_CHARS_MOST = 1024
# Each is a place at which a search may turn back; more of them are no pattern of a person.
_STARS_MOST = 16


def expression(pattern: str) -> str:
    """A perl expression, in ASCII, that a whole name or path matches when it matches the pattern.

    ``*`` and ``?`` do not match a slash, ``**`` does: ``**/`` is any number of directories. ``[abc]``, ``[a-z]`` and
    ``[!a]`` are one character of these. Raises InvalidParameter.
    """
    if not pattern or len(pattern) > _CHARS_MOST or "\0" in pattern:
        raise InvalidParameter(f"A pattern has from 1 to {_CHARS_MOST} characters.", field="pattern")
    parts: list[str] = []
    at = stars = 0
    while at < len(pattern):
        letter, begins = pattern[at], at == 0 or pattern[at - 1] == "/"
        at += 1
        if letter == "*":
            stars += 1
            rest = pattern[at:].lstrip("*")
            deep = len(rest) < len(pattern) - at
            at = len(pattern) - len(rest)
            if deep and begins and rest.startswith("/"):
                at += 1
                parts.append("(?:.*/)?")
            else:
                parts.append(".*" if deep else "[^/]*")
        elif letter == "?":
            parts.append("[^/]")
        elif letter == "[" and (end := _end_of_class(pattern, at)):
            parts.append(_class(pattern[at:end]))
            at = end + 1
        elif letter == "\\" and at < len(pattern):
            parts.append(_quoted(pattern[at]))
            at += 1
        else:
            parts.append(_quoted(letter))
    if stars > _STARS_MOST:
        raise InvalidParameter(f"A pattern has at most {_STARS_MOST} stars.", field="pattern")
    return "".join(parts)


def is_path(pattern: str) -> bool:
    """Whether a pattern is for whole paths: it has a slash."""
    return "/" in pattern


def _end_of_class(pattern: str, at: int) -> int:
    """Where a class ends whose content begins at ``at``; 0 when it does not."""
    begin = at + (pattern[at : at + 1] in {"!", "^"})
    # A bracket that comes first stands for itself.
    return max(0, pattern.find("]", begin + 1))


def _class(content: str) -> str:
    negated = content[0] in "!^" and len(content) > 1
    content = content[1:] if negated else content
    parts: list[str] = []
    at = 0
    while at < len(content):
        first, last = content[at], content[at + 2 : at + 3]
        if content[at + 1 : at + 2] == "-" and last:
            if first > last:
                raise InvalidParameter(f"The pattern has a range that is none: {first}-{last}", field="pattern")
            parts.append(f"{_quoted(first)}-{_quoted(last)}")
            at += 3
        else:
            parts.append(_quoted(first))
            at += 1
    # No class matches a slash, whatever is in it.
    return f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"


def _quoted(letter: str) -> str:
    return letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):x}}}"
