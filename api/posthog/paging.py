"""Lists in pages by ``limit`` and ``offset``: ``{count, next, previous, results}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request

DEFAULT_LIMIT = 50
MOST_LIMIT = 100


@dataclass(frozen=True)
class Paging:
    """Which part of a list is asked for, and of which request, whose URL the neighbouring pages have."""

    request: Request
    limit: int
    offset: int

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.limit)

    def envelope(self, results: list[Any], count: int) -> dict[str, Any]:
        """The page around its results; ``count`` is that of all of them."""
        after = self.offset + self.limit
        before = max(0, self.offset - self.limit)
        return {
            "count": count,
            "next": self._url(after) if after < count else None,
            "previous": self._url(before) if self.offset > 0 else None,
            "results": results,
        }

    def _url(self, offset: int) -> str:
        return str(self.request.url.include_query_params(limit=self.limit, offset=offset))


async def _paging(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=2**31, description=f"At most {MOST_LIMIT}")] = DEFAULT_LIMIT,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Paging:
    return Paging(request, min(limit, MOST_LIMIT), offset)


PagingOf = Annotated[Paging, Depends(_paging)]
