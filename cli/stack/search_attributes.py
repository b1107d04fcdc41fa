"""Search attributes of the workflows: read from temporal-dev/, registered where Temporal does not have them yet."""

from __future__ import annotations

from pathlib import Path

import yaml
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.service import RPCError

from foundation.engine import connect_engine
from foundation.errors import HostNotReady
from foundation.settings import Settings

CONFIGURATION = Path(__file__).resolve().parents[2] / "temporal-dev"


def wanted_attributes() -> dict[str, str]:
    """Type (Keyword, KeywordList, Datetime, ...) by name of attribute."""
    loaded: dict[str, str] = yaml.safe_load((CONFIGURATION / "search-attributes.yaml").read_text())
    return loaded


async def register_attributes(settings: Settings) -> list[str]:
    """Register the attributes that the namespace lacks; the names that were added.

    Raises HostNotReady with the commands to run when Temporal does not let this process register them, or when one
    exists with another type; RPCError or RuntimeError when Temporal does not answer.
    """
    client = await connect_engine(settings)
    namespace = settings.temporal_namespace
    known = (
        await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    ).custom_attributes
    wanted = {name: IndexedValueType.Value(_enum_name(kind)) for name, kind in wanted_attributes().items()}
    clashing = [name for name, kind in wanted.items() if known.get(name, kind) != kind]
    if clashing:
        raise HostNotReady(
            f"Temporal's namespace '{namespace}' has search attributes of another type than Taskyard needs: "
            f"{', '.join(clashing)}. Use another namespace (TASKYARD_TEMPORAL_NAMESPACE)."
        )
    missing = {name: kind for name, kind in wanted.items() if name not in known}
    if missing:
        try:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=namespace, search_attributes=missing)
            )
        except RPCError as error:
            raise HostNotReady(_by_hand(settings, list(missing), error.message)) from error
    return list(missing)


def _enum_name(kind: str) -> str:
    words = {"KeywordList": "KEYWORD_LIST"}
    return f"INDEXED_VALUE_TYPE_{words.get(kind, kind.upper())}"


def _by_hand(settings: Settings, names: list[str], reason: str) -> str:
    kinds = wanted_attributes()
    commands = "\n".join(
        f"  temporal operator search-attribute create --address {settings.temporal_target} "
        f"--namespace {settings.temporal_namespace} --name {name} --type {kinds[name]}"
        for name in names
    )
    return f"Temporal did not let Taskyard register its search attributes ({reason}). Run:\n{commands}"
