"""Sandbox environments, whoever asks: made, shown, changed, deleted, and given to the manifest of a run.

The values of variables go in and never out again: a run gets them as secrets, by reference, on its VM host.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.errors import Conflict, InvalidBody, InvalidManifest, NotFound, RateLimitExceeded
from foundation.faults import Fault
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.environments.store import MOST, Environment, EnvironmentStore
from workflows.specs import wire
from workflows.specs.hosts import MAX_RULES, host_rule
from workflows.specs.manifest import SecretReference
from workflows.specs.wire import NetworkMode

MAX_VARIABLES = 50
MAX_VALUE_BYTES = 64 * 1024
MAX_VALUES_BYTES = 256 * 1024
MAX_DOMAINS = 100

Network = Literal["trusted", "full", "custom"]
T = TypeVar("T")

_SOURCE = "environment"
_CHANGES_MOST = 10


class Change(BaseModel):
    """What is to be different; null leaves it as it is. ``variables`` are all of them, with their values."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    network: Network | None = None
    domains: list[str] | None = None
    default_domains: bool | None = None
    repositories: list[str] | None = None
    private: bool | None = None
    variables: dict[str, str] | None = None


class Environments:
    """The environments of all projects. Every method may raise BucketUnavailable.

    ``viewer`` is who asks: the private environments of others do not exist for them.
    """

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._store = EnvironmentStore(bucket, settings.service_key)

    async def create(self, project: str, viewer: str, change: Change) -> Environment:
        """Make one. Raises InvalidBody with every fault, RateLimitExceeded when there are too many."""
        if len(await self._in_thread(self._store.all)) >= MOST:
            raise RateLimitExceeded(f"There are {MOST} sandbox environments; delete some that are not used any more.")
        now = datetime.now(UTC)
        made = Environment(
            id=str(uuid.uuid4()),
            project=project,
            owner=viewer,
            name="",
            network="full",
            created_at=now,
            updated_at=now,
        )
        made = await self._changed(made, change)
        await self._in_thread(lambda: self._store.write(made))
        return made

    async def list(self, project: str, viewer: str) -> Sequence[Environment]:
        """Those of a project that the viewer may see, the newest first."""
        found = await self._in_thread(self._store.all)
        return [each for each in found if each.project == project and _is_seen(each, viewer)]

    async def get(self, project: str, viewer: str, environment_id: str) -> Environment:
        """One of them. Raises NotFound."""
        environment_id = _checked(environment_id)
        found = await self._in_thread(lambda: self._store.newest(environment_id))
        if found.project != project or not _is_seen(found, viewer):
            raise _missing(environment_id)
        return found

    async def update(self, project: str, viewer: str, environment_id: str, change: Change) -> Environment:
        """Change what the change names. Raises NotFound, InvalidBody; Conflict when others change it all the time."""
        for _ in range(_CHANGES_MOST):
            before = await self.get(project, viewer, environment_id)
            after = (await self._changed(before, change)).changed(updated_at=datetime.now(UTC))
            if await self._in_thread(lambda after=after: self._store.write(after)):  # type: ignore[misc]
                return after
        raise _busy()

    async def delete(self, project: str, viewer: str, environment_id: str) -> None:
        """Delete it: runs that have not begun yet do not get its variables any more. Raises NotFound."""
        found = await self.get(project, viewer, environment_id)
        await self._in_thread(lambda: self._store.delete(found))

    async def check(self, secrets: Sequence[wire.SecretReference], viewer: str | None) -> None:
        """Return when all that these secrets name of environments is there for who asks; None is nobody known.

        Raises InvalidManifest with every fault.
        """
        wrong = [
            Fault(f"secrets[{number}].key", reason, "not_found")
            for number, secret in enumerate(secrets)
            if secret.source == _SOURCE and (reason := await self._unnamed(secret.key, viewer))
        ]
        if wrong:
            raise InvalidManifest.of(wrong)

    async def _unnamed(self, key: str, viewer: str | None) -> str:
        environment_id, _, name = key.partition("/")
        try:
            found = await self._in_thread(lambda: self._store.newest(_checked(environment_id)))
        except NotFound:
            found = None
        if found is None or not _is_seen(found, viewer):
            # Whoever may not see it does not learn that it is there.
            return "names a sandbox environment that is not there, or is private and not of the key that was sent"
        return "" if name in found.variables else f"names a variable that '{found.name[:80]}' does not have"

    async def _changed(self, environment: Environment, change: Change) -> Environment:
        _check(change)
        told = change.model_dump(exclude={"variables"}, exclude_none=True)
        if change.variables is not None:
            values = change.variables
            told["variables"] = sorted(values)
            told["sealed"] = await self._in_thread(lambda: self._store.seal(environment.id, values)) if values else ""
        return environment.model_copy(update=told)

    @staticmethod
    async def _in_thread(call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call)


def applied(environment: Environment, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest, not parsed yet, with the environment's variables as secrets and its network.

    Secrets of the same name that the manifest has already stay as they are.
    """
    secrets = list(manifest.get("secrets", []))
    named = {secret["name"] for secret in secrets}
    secrets += [
        {"name": name, "source": _SOURCE, "key": f"{environment.id}/{name}"}
        for name in environment.variables
        if name not in named
    ]
    mode, hosts = network_of(environment)
    vm = {**manifest.get("vm", {}), "network_mode": mode.value, "allowed_hosts": hosts}
    return {**manifest, "secrets": secrets, "vm": vm}


def network_of(environment: Environment) -> tuple[NetworkMode, list[str]]:
    """The network mode of an environment, and the host rules that go with it.

    In the mode ``outbound``, the hosts that the operator lets every run reach are open too: those are the trusted ones.
    """
    if environment.network == "full":
        return NetworkMode.FULL, []
    if environment.network == "custom":
        hosts = list(dict.fromkeys(environment.domains))
        return (NetworkMode.OUTBOUND if hosts or environment.default_domains else NetworkMode.ISOLATED), hosts
    return NetworkMode.OUTBOUND, []


def _check(change: Change) -> None:
    """Raise InvalidBody with every fault of a change."""
    wrong: list[Fault] = []
    for number, domain in enumerate(change.domains or ()):
        try:
            host_rule(domain)
        except ValueError as error:
            wrong.append(Fault(f"domains[{number}]", str(error), "invalid"))
    if len(change.domains or ()) > min(MAX_DOMAINS, MAX_RULES):
        wrong.append(Fault("domains", f"has more than the {MAX_DOMAINS} entries that it may have", "too_long"))
    values = change.variables or {}
    if len(values) > MAX_VARIABLES:
        wrong.append(Fault("variables", f"has more than the {MAX_VARIABLES} entries that it may have", "too_long"))
    for name, value in list(values.items())[: MAX_VARIABLES + 1]:
        if reason := _wrong_name(name) or _wrong_value(value):
            wrong.append(Fault("variables", f"{name[:80]!a} {reason}", "invalid"))
    if sum(len(value) for value in values.values()) > MAX_VALUES_BYTES:
        wrong.append(Fault("variables", f"take more than {MAX_VALUES_BYTES // 1024} KiB together", "too_long"))
    if wrong:
        raise InvalidBody.of(wrong)


def _wrong_name(name: str) -> str:
    """Why a variable of this name would not arrive: the rules are those of a manifest's secrets."""
    try:
        SecretReference(name=name, source=_SOURCE, key=f"{uuid.UUID(int=0)}/{name}")
    except ValidationError as error:
        return str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
    return ""


def _wrong_value(value: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "has a value that is no Unicode text"
    if not value or "\0" in value:
        return "has an empty value, or one with a NUL byte"
    return f"has a value of more than {MAX_VALUE_BYTES // 1024} KiB" if size > MAX_VALUE_BYTES else ""


def _is_seen(environment: Environment, viewer: str | None) -> bool:
    return not environment.private or environment.owner == viewer


def _checked(environment_id: str) -> str:
    try:
        return str(uuid.UUID(environment_id))
    except ValueError:
        raise _missing(environment_id) from None


def _missing(environment_id: str) -> NotFound:
    return NotFound(f"There is no sandbox environment '{environment_id[:80]}'.")


def _busy() -> Conflict:
    return Conflict("The sandbox environment is being changed by others all the time; try again.")
