"""Query parameters of this dialect: read whole, or refused with what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from api.runs.events import KINDS, Kind
from foundation.errors import InvalidParameter
from workflows.runs.states import TaskState

_LABEL = "label."
_LARGEST_ID = 2**63
_SHOWN = 80


async def known_parameters(request: Request) -> None:
    """A dependency that refuses query parameters that the route does not have, and one that is given two values."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = {
        parameter.alias for parameter in get_flat_params(route.dependant) if isinstance(parameter.field_info, Query)
    }
    labelled = "label.KEY" in str(route.openapi_extra)
    seen: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known and not (labelled and name.startswith(_LABEL)):
            there = f"there is {', '.join(sorted(known))}" if known else "there are none"
            raise InvalidParameter(f"'{name[:_SHOWN]}' is no parameter of this; {there}.", field=name[:_SHOWN])
        if seen.setdefault(name, value) != value:
            raise InvalidParameter(f"{name[:_SHOWN]} is asked to be two values at once.", field=name[:_SHOWN])


def labels_of(request: Request) -> dict[str, str]:
    """The labels that a list is to be filtered by."""
    given = request.query_params.items()
    return {key.removeprefix(_LABEL): value for key, value in given if key.startswith(_LABEL)}


def parse_states(text: str | None) -> frozenset[TaskState]:
    """The states in a comma-separated list. Raises InvalidParameter for a word that is none."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    unknown = [word for word in words if word not in set(TaskState)]
    if unknown:
        raise InvalidParameter(
            f"'{unknown[0]}' is not a state; states are {', '.join(TaskState)}.", field="state", unknown=unknown
        )
    return frozenset(TaskState(word) for word in words)


def parse_since(text: str | None) -> datetime | None:
    """An ISO-8601 time; without an offset it is UTC. Raises InvalidParameter."""
    if not text:
        return None
    try:
        # A '+' of the offset that was not percent-encoded arrives as a space.
        since = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise InvalidParameter(
            f"since: '{text}' is not an ISO-8601 time; write one such as 2026-01-29T10:00:00Z.", field="since"
        ) from error
    return since if since.tzinfo else since.replace(tzinfo=UTC)


def parse_filter(text: str) -> frozenset[str]:
    """The kinds in a comma-separated list; all of them for none. Raises InvalidParameter for a word that is none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in words if word not in KINDS]:
        raise InvalidParameter(
            f"'{unknown[0]}' is no kind of event; kinds are {', '.join(get_args(Kind))}.", field="filter"
        )
    return frozenset(words) or KINDS


def parse_entry_id(text: str, field: str) -> int:
    """The id of an entry of a log; 0, which is before the first, for no text. Raises InvalidParameter."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_LARGEST_ID)) or int(text) >= _LARGEST_ID:
        raise InvalidParameter(f"{field} is not the id of an entry: a whole number below 2^63.", field=field)
    return int(text)
