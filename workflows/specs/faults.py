"""What is wrong with a manifest, in its own words: broken rules by their fields, credentials wherever they stand."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from foundation.faults import MOST_FAULTS, Fault, below
from foundation.urls import has_credentials
from workflows.specs.wire import Manifest

# Texts that nobody but people and the agent reads: a URL with credentials in them may be what the task is about.
FREE_TEXTS = ("claude.prompt", "metadata.name")
_LONGEST_NAME = 100


def of_rules(errors: Sequence[Any], form: type[BaseModel], above: tuple[str, ...] = ()) -> list[Fault]:
    """Pydantic's errors in data of the form, or in what stands ``above`` in it; no more than a refusal shows."""
    return [_fault(error, form, above) for error in errors[: MOST_FAULTS + 1]]


def texts(data: Any) -> Iterator[tuple[str, str]]:
    """Every text in the data with its place, names of fields too."""
    pending: list[tuple[str, Any]] = [("", data)]
    while pending:
        field, part = pending.pop()
        if isinstance(part, str):
            yield field, part
        elif isinstance(part, dict):
            pending += [(below(field, str(key)), part[key]) for key in reversed(part)]
            pending += [(field, key) for key in part]
        elif isinstance(part, list):
            pending += [(below(field, index), part[index]) for index in range(len(part) - 1, -1, -1)]


def of_credentials(data: dict[str, Any]) -> Iterator[Fault]:
    """Credentials that would be kept with the run, anywhere but in free text."""
    for field, text in texts(data):
        if field in FREE_TEXTS or not has_credentials(text):
            continue
        if field == "repository.url":
            instead = (
                "write the URL bare, and name the secret that opens it in repository.credentials, or give git on the "
                "VM host the credentials"
            )
        elif field.startswith("claude.mcp_config"):
            instead = "name a secret of 'secrets' in its place, as ${NAME}"
        else:
            instead = "take them out"
        yield Fault(field, f"must not hold credentials, which would be kept with the run; {instead}", "credentials")


def _fault(item: Any, form: type[BaseModel], above: tuple[str, ...]) -> Fault:
    location = (*above, *item["loc"])
    field = ""
    for part in location:
        if part != "[key]":
            field = below(field, part)
    kind = item["type"]
    if kind == "missing":
        return Fault(field, "is required", "required")
    if kind == "extra_forbidden":
        return Fault(field, _unknown_field(location, form), "unknown")
    message = item["msg"].removeprefix("Value error, ")
    if field == "version" and kind == "literal_error":
        message = 'must be the string "1" (with quotes in YAML)'
    elif kind == "string_type":
        message = "must be text; write it in quotes if it looks like a number, true, false or null"
    elif kind == "too_long" and "ctx" in item:
        message = f"has more entries than the {item['ctx']['max_length']} that it may have"
    elif kind in {"model_type", "dict_type"}:
        message = "must be a mapping of names to values"
    return Fault(field, message[:1].lower() + message[1:], kind)


def _unknown_field(location: tuple[str | int, ...], form: type[BaseModel]) -> str:
    known = _fields_at(location[:-1], form)
    near = difflib.get_close_matches(str(location[-1])[:_LONGEST_NAME], known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known fields here: {', '.join(known)}"
    return f"is not a field {'of a manifest' if issubclass(form, Manifest) else 'here'}; {hint}"


def _fields_at(location: tuple[str | int, ...], model: type[BaseModel]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        model = next(
            candidate
            for candidate in (annotation, *arguments)
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        )
    return list(model.model_fields)
