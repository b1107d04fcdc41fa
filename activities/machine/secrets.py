"""Secrets: references resolved once for a run on its VM host, values kept in memory there and in the guest only.

Of an injected one the guest gets a placeholder; its value stays on the host, whose egress proxy puts it into requests.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.machine.authority import ensure_authority
from activities.machine.injection import InjectedSecret, check_value, new_placeholder
from activities.machine.trust import trust
from activities.machine.vault import Vault, VaultRefused
from activities.step.announcements import announce
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from foundation.durable import write_once
from foundation.errors import BucketUnavailable, HostNotReady, NotFound, SecretSourceAway, SecretUnavailable
from foundation.settings import Settings
from guest.contract import ENVIRONMENT, VOLATILE_DIR
from machines.host import MachineHost
from machines.paths import machine_paths, volatile_file
from machines.ssh import GuestShell
from storage.bucket import Bucket
from storage.environments.store import EnvironmentStore
from storage.redaction import MIN_VALUE_BYTES, Redactor
from workflows import steps
from workflows.runs.requests import SecretsRequest, SecretsResult
from workflows.specs.wire import Injection, SecretReference

MAX_BYTES = 64 * 1024
# Settings and credentials of Taskyard and of the model provider are never a task's.
_NEVER = ("TASKYARD_", "ANTHROPIC_", "VAULT_")
_KINDS = {
    "env": "the environment variable",
    "file": "the file",
    "vault": "the Vault path",
    "environment": "the sandbox environment's variable",
}


class Secrets:
    """The step that hands a run its secrets."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket) -> None:
        self._settings = settings
        self._host = host
        self._bucket = bucket
        self._secrets = RunSecrets(settings)

    @activity.defn(name=steps.SECRETS.name)
    @boundary
    def inject_secrets(self, request: SecretsRequest) -> SecretsResult:
        """Resolve the references and write the values into the guest, replacing what an earlier call wrote."""
        with beating():
            values = self._secrets.resolve(request.machine_id, request.secrets)
            shell = self._host.connect(request.machine_id)
            shell.run(f"mkdir -p {VOLATILE_DIR}")
            # Readable by root, who starts the agent with them.
            shell.write(ENVIRONMENT, environment_block(self._secrets.given(request.machine_id)), mode=0o600)
            self._have_trusted(request.machine_id, shell)
            notes = [
                f"The value of secret {name} is shorter than {MIN_VALUE_BYTES} bytes, so it is not redacted in the log "
                "and the artifacts; give it a longer one."
                for name in Redactor(values).unredacted
            ]
            for note in notes:
                announce(self._bucket, request.task_id, "warning", note)
        return SecretsResult(names=list(values), notes=notes)

    def _have_trusted(self, machine_id: str, shell: GuestShell) -> None:
        """Make the guest trust the egress proxy with its hosts, if any secret is injected."""
        domains = {rule.host for secret in self._secrets.injected(machine_id) or () for rule in secret.hosts}
        if not domains:
            return
        try:
            authority = ensure_authority(machine_paths(self._settings, machine_id).directory, domains)
        except OSError as error:
            raise HostNotReady(
                f"The authority of {machine_id} for injected secrets cannot be kept ({error.strerror}); free some disk."
            ) from error
        trust(shell, authority.pem.encode())


class RunSecrets:
    """The secrets of runs with the values that were found first, whatever becomes of their sources meanwhile.

    They lie in this host's memory, readable by its user alone, until the machine is destroyed or the host restarted.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def resolve(self, machine_id: str, references: Sequence[SecretReference]) -> dict[str, str]:
        """Values by name, resolved by the first call. Raises SecretUnavailable, whose sentence never holds a value."""
        held = self._held(machine_id)
        if held is None and references:
            path = volatile_file(self._settings, machine_id)
            # Of two at once, both give the guest the same.
            write_once(path, json.dumps(_kept(references, resolve_all(self._settings, references))))
            held = self._held(machine_id)
            if held is None:
                raise HostNotReady(
                    f"Secrets cannot be kept in memory: {path} is there and is not this worker's; remove it."
                )
        return _values(held or {})

    def known(self, machine_id: str, references: Sequence[SecretReference]) -> dict[str, str]:
        """Values by name as they were resolved; those of now for a run whose values are no longer held."""
        held = self._held(machine_id)
        return resolve_all(self._settings, references) if held is None else _values(held)

    def given(self, machine_id: str) -> dict[str, str]:
        """What the guest gets, by name: values, and placeholders for those that are injected."""
        held = self._held(machine_id) or {}
        return {name: kept if isinstance(kept, str) else kept["placeholder"] for name, kept in held.items()}

    def injected(self, machine_id: str) -> tuple[InjectedSecret, ...] | None:
        """What the egress proxy puts in for the machine; None while no values are held for it."""
        held = self._held(machine_id)
        if held is None:
            return None
        return tuple(
            InjectedSecret.of(name, kept["value"], kept["placeholder"], Injection.model_validate(kept["inject"]))
            for name, kept in held.items()
            if not isinstance(kept, str)
        )

    def redactor(self, machine_id: str) -> Redactor:
        """Takes out the values that the run was given, as far as they are held."""
        return Redactor(_values(self._held(machine_id) or {}))

    def _held(self, machine_id: str) -> dict[str, Any] | None:
        """By name a value, or of an injected secret its ``value``, ``placeholder`` and what it is for (``inject``)."""
        try:
            descriptor = os.open(volatile_file(self._settings, machine_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            # Its place may be one where everybody can put files, and pipes that nobody writes to.
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                return None
            with os.fdopen(os.dup(descriptor)) as file:
                return dict(json.load(file))
        finally:
            os.close(descriptor)


def _kept(references: Iterable[SecretReference], values: Mapping[str, str]) -> dict[str, Any]:
    kept: dict[str, Any] = dict(values)
    for reference in references:
        if reference.inject is not None:
            value = values[reference.name]
            check_value(reference, value)
            placeholder = new_placeholder(value)
            kept[reference.name] = {
                "value": value,
                "placeholder": placeholder,
                "inject": reference.inject.model_dump(),
            }
    return kept


def _values(held: Mapping[str, Any]) -> dict[str, str]:
    return {name: kept if isinstance(kept, str) else kept["value"] for name, kept in held.items()}


def resolve_all(settings: Settings, references: Iterable[SecretReference]) -> dict[str, str]:
    """Values of the references by name. Raises SecretUnavailable, whose sentence never holds a value."""
    with Vault(settings) as vault:
        return {reference.name: _resolve(settings, vault, reference) for reference in references}


def environment_block(values: Mapping[str, str]) -> bytes:
    """The pairs as the guest reads them."""
    return b"".join(f"{name}={value}".encode() + b"\0" for name, value in values.items())


def _resolve(settings: Settings, vault: Vault, reference: SecretReference) -> str:
    match reference.source:
        case "env":
            value = _from_environment(settings, reference)
        case "file":
            value = _from_file(settings, reference)
        case "vault":
            value = _from_vault(vault, reference)
        case "environment":
            value = _from_sandbox_environment(settings, reference)
        case _:
            raise _unavailable(reference, f"has the source '{reference.source}', which this worker does not know")
    if not value:
        raise _unavailable(reference, "is empty; give it a value")
    if "\0" in value:
        raise _unavailable(reference, "holds a NUL byte, which no environment variable can hold")
    return value


def _from_environment(settings: Settings, reference: SecretReference) -> str:
    key = reference.key
    if key.upper().startswith(_NEVER):
        raise _unavailable(
            reference, "is not for tasks: TASKYARD_*, ANTHROPIC_* and VAULT_* never are; name another variable"
        )
    if not any(fnmatchcase(key, pattern) for pattern in settings.secret_env_names):
        raise _unavailable(reference, "is not allowed; TASKYARD_SECRET_ENV_NAMES names the variables that are")
    value = os.environ.get(key)
    if value is None:
        raise _unavailable(reference, f"is not set in the environment of the worker on {settings.host_name}")
    if len(os.fsencode(value)) > MAX_BYTES:
        raise _unavailable(reference, f"is larger than {MAX_BYTES // 1024} KiB")
    try:
        return os.fsencode(value).decode()
    except UnicodeDecodeError:
        # Without a cause, which would hold the value.
        raise _unavailable(reference, "is not UTF-8 text") from None


def _from_file(settings: Settings, reference: SecretReference) -> str:
    home = settings.home.resolve()
    own = home / "secrets"
    roots = [own, *(root.resolve() for root in settings.secret_file_roots)]
    path = Path(os.path.realpath(reference.key))
    inside = any(path.is_relative_to(root) for root in roots)
    if not inside or (path.is_relative_to(home) and not path.is_relative_to(own)):
        allowed = ", ".join(str(root) for root in roots)
        raise _unavailable(reference, f"is not allowed; secret files lie below one of: {allowed}")
    try:
        # Neither a link put there since, nor a pipe that would hold the step up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unavailable(reference, f"cannot be read on {settings.host_name}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _unavailable(reference, "is no regular file")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise _unavailable(reference, f"is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _unavailable(reference, "is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\r\n") else text.removesuffix("\n")


def _from_vault(vault: Vault, reference: SecretReference) -> str:
    try:
        value = vault.read(reference.key)
    except VaultRefused as refused:
        kind = SecretSourceAway if refused.later else SecretUnavailable
        raise _unavailable(reference, refused.reason, kind) from None
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _unavailable(reference, "is not UTF-8 text") from None
    if size > MAX_BYTES:
        raise _unavailable(reference, f"is larger than {MAX_BYTES // 1024} KiB")
    return value


def _from_sandbox_environment(settings: Settings, reference: SecretReference) -> str:
    environment, _, name = reference.key.partition("/")
    try:
        return EnvironmentStore(Bucket(settings), settings.service_key).value(environment, name)
    except NotFound:
        raise _unavailable(reference, "does not exist any more; write it anew, or take another environment") from None
    except BucketUnavailable as error:
        raise _unavailable(reference, f"cannot be read: {error.message}", SecretSourceAway) from None
    except HostNotReady as error:
        raise _unavailable(reference, f"cannot be read: {error.message}") from None


def _unavailable(
    reference: SecretReference, reason: str, kind: type[SecretUnavailable] = SecretUnavailable
) -> SecretUnavailable:
    return kind(
        f"Secret {reference.name}: {_KINDS.get(reference.source, 'the reference')} {reference.key} {reason}.",
        name=reference.name,
        source=reference.source,
        key=reference.key,
    )
