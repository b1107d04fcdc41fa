"""What each VM host last said of the machines that it keeps for people to look into, by the run that left them."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ValidationError

from storage.bucket import ObjectStore
from storage.layout import preserved_key


class PreservedMachine(BaseModel):
    """A machine that is kept until a moment; ``ssh_command`` enters it on its host, null while it cannot be entered."""

    machine_id: str
    until: AwareDatetime
    ssh_command: str | None = None


class _Said(BaseModel):
    runs: dict[str, PreservedMachine]


def replace_preserved(store: ObjectStore, host: str, runs: dict[str, PreservedMachine]) -> None:
    """Replace what the host said before: ``runs`` has an entry for each run whose machine it keeps, and no other."""
    body = _Said(runs=runs).model_dump_json().encode()
    store.put(preserved_key(host), body, content_type="application/json")


def preserved_on(store: ObjectStore, host: str) -> dict[str, PreservedMachine] | None:
    """The machines that a host keeps, by run; None when it has never said, or in a form that is not known here."""
    body = store.get(preserved_key(host))
    try:
        return None if body is None else _Said.model_validate_json(body).runs
    except ValidationError:
        return None
