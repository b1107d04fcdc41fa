"""A directory like that of a repository: many files, most of them small, half text and half noise, always the same."""

from __future__ import annotations

import random
from pathlib import Path

_TYPICAL_BYTES, _SPREAD, _MOST_BYTES = 5_000, 1.7, 2_000_000
_FILES_IN_A_DIRECTORY = 20
_POOL_BYTES = 4 * 2**20


def make_tree(directory: Path, size: int) -> int:
    """Make the new directory with ``size`` bytes in files; gives how many files that are."""
    chance = random.Random(size)  # noqa: S311 -- the same tree every time
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 12))) for _ in range(5000)]
    text = " ".join(chance.choices(words, k=_POOL_BYTES // 4)).encode()[:_POOL_BYTES].ljust(_POOL_BYTES, b"\n")
    noise = chance.randbytes(_POOL_BYTES)
    count = 0
    while size > 0:
        length = min(size, _MOST_BYTES, int(chance.lognormvariate(0, _SPREAD) * _TYPICAL_BYTES) + 1)
        start = chance.randrange(_POOL_BYTES - length)
        number = count // _FILES_IN_A_DIRECTORY
        path = directory / f"part{number // 10}" / f"unit{number}" / f"file{count}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((noise if count % 2 else text)[start : start + length])
        size -= length
        count += 1
    return count
