"""The snippets of README.md and docs/: code blocks, fenced or indented, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMAND = re.compile(r"^(?:\w+=\S* )*(?:\w+=\$\()?(?P<program>[\w./-]+)")
_PROGRAMS = {"curl", "sandbox", ".venv/bin/sandbox", "temporal", "make", "export", "python", "git", "pip", "npm"}
_FIGURE = re.compile("[─◄►▲│└]")
_REMARK = re.compile(r"\s{2,}#.*$|^#.*$")
# Written by the program itself: synopses, not commands.
_WRITTEN = re.compile(r"<!-- (commands|settings|figures): begin .*?<!-- \1: end -->", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A code block: its page, its first line there, its language ('' when it has none) and its text."""

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """The shell commands in it, without remarks, continued lines joined; none when it is no shell snippet."""
        if self.language not in {"", "sh", "bash", "shell", "console"} or _FIGURE.search(self.text):
            return []
        joined = self.text.replace("\\\n", " ")
        lines = [_REMARK.sub("", line).strip() for line in joined.splitlines()]
        return [line for line in lines if (match := _COMMAND.match(line)) and match["program"] in _PROGRAMS]


def snippets(page: Path) -> list[Snippet]:
    """All code blocks of a page, in order."""
    return list(_blocks(page.relative_to(ROOT).as_posix(), _without_written(page.read_text())))


def inline(page: Path) -> list[str]:
    """All inline code of a page."""
    text = re.sub(r"^```.*?^```", "", _without_written(page.read_text()), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def _without_written(text: str) -> str:
    return _WRITTEN.sub(lambda match: "\n" * match[0].count("\n"), text)


def _blocks(page: str, text: str) -> Iterator[Snippet]:
    begun: list[str] = []
    language: str | None = None
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        fence = _FENCE.match(line)
        if language is not None:
            if fence:
                yield Snippet(page, number - len(begun), language, "\n".join(begun))
                begun, language = [], None
            else:
                begun.append(line)
        elif fence:
            language = fence[1]
        elif line.startswith("    ") or (begun and not line.strip()):
            begun.append(line[4:])
        elif begun:
            yield Snippet(page, number - len(begun), "", "\n".join(begun))
            begun = []
