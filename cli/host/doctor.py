"""The command `sandbox doctor`: what is missing or slow on this host, in plain words, and how to mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from foundation.settings import Settings

_PACKAGES = Path(__file__).resolve().parents[2] / "setup" / "os-packages.txt"
_DEFAULT_PROFILE = "agentic-dev"
# Memory of a machine whose manifest does not say; and the least with which one can be started at all.
_USUAL_MEMORY = 8 * 2**30
_LEAST_MEMORY = 512 * 2**20
_LEAST_DISK = 4 * 2**30
_COMFORTABLE_DISK = 20 * 2**30


@dataclass(frozen=True)
class Finding:
    """Outcome of one check. ``mend`` says what to do; it is empty when nothing is to be done."""

    name: str
    grade: Literal["ok", "warn", "fail"]
    text: str
    mend: str = ""


def doctor() -> None:
    """Say what is missing or slow on this host, and how to mend it. Exit code 0 when tasks can run here, else 1."""
    from rich.console import Console
    from rich.text import Text

    from foundation.settings import Settings

    console = Console(highlight=False)
    marks = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
    grades = []
    for finding in examine(Settings()):
        grades.append(finding.grade)
        mark, colour = marks[finding.grade]
        line = Text(f"{mark} {finding.grade:<5}", style=colour)
        line.append(f"{finding.name:<14}", style="bold").append(finding.text, style="default")
        console.print(line, soft_wrap=True)
        if finding.mend:
            console.print(Text(f"{'':21}→ {finding.mend}"), soft_wrap=True)
    failed, warned = grades.count("fail"), grades.count("warn")
    if failed:
        console.print(f"\nTasks cannot run here yet: {failed} of {len(grades)} checks failed.")
        raise typer.Exit(1)
    console.print("\nTasks can run here." if not warned else f"\nTasks can run here; {warned} remarks above.")


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, one after the other: some take a moment."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _os_packages,
        _acceleration,
        _memory,
        _disk,
        _sockets,
        _image,
        _services,
        _ports,
        _host_service,
        _token_keys,
        _model,
        _prices,
        _vault,
        _certificates,
        _network,
    )
    for check in checks:
        yield from check(settings)


def _os_packages(_settings: Settings) -> Iterator[Finding]:
    missing: dict[str, str] = {}
    tools = [line.split(None, 3) for line in _PACKAGES.read_text().splitlines() if not line.startswith("#")]
    for command, package, who, purpose in tools:
        if (who == "all" or os.getuid() != 0) and shutil.which(command) is None:
            missing[package] = f"{command} ({purpose})"
    if missing:
        yield Finding(
            "OS packages",
            "fail",
            f"missing: {', '.join(missing.values())}",
            f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    else:
        yield Finding("OS packages", "ok", f"all {len({tool[1] for tool in tools})} are here")


def _host_service(settings: Settings) -> Iterator[Finding]:
    from foundation.errors import HostNotReady
    from worker.service.certificate import host_certificate

    if not settings.host_listen:
        return
    if settings.host_certificate or settings.host_certificate_key:
        # One of its own is made when the worker starts: here nothing is made.
        try:
            host_certificate(settings)
        except HostNotReady as error:
            yield Finding("host service", "fail", error.message)
            return
    if settings.host_key is None:
        yield Finding(
            "host service",
            "warn",
            f"will listen on {settings.host_listen}, with a key that servers elsewhere do not have",
            "set TASKYARD_HOST_KEY to the same on servers and hosts: openssl rand -hex 32",
        )
    else:
        yield Finding("host service", "ok", f"listens on {settings.host_listen} for API servers")


def _token_keys(settings: Settings) -> Iterator[Finding]:
    from api.http.tokens import TokenKeys
    from foundation.errors import HostNotReady

    if not settings.token_keys:
        return
    try:
        keys = TokenKeys(settings).public_keys()
    except HostNotReady as error:
        yield Finding("token keys", "fail", error.message)
    else:
        yield Finding("token keys", "ok", f"{keys[0]['kid']} signs, {len(keys)} accepted")


def _acceleration(settings: Settings) -> Iterator[Finding]:
    from foundation.errors import HostNotReady
    from machines.hypervisor.acceleration import usable_acceleration

    try:
        chosen = usable_acceleration(settings, lambda _line: None)
    except HostNotReady as error:
        yield Finding("acceleration", "fail", error.message)
        return
    if chosen == "kvm":
        yield Finding("acceleration", "ok", "KVM works: a guest was started with it")
    elif settings.acceleration == "tcg":
        yield Finding("acceleration", "warn", "emulation (slow), as TASKYARD_ACCELERATION demands")
    else:
        device = Path("/dev/kvm")
        if not device.exists():
            why, mend = "this host has no /dev/kvm", "enable virtualisation in the firmware, or nested virtualisation"
        elif not os.access(device, os.R_OK | os.W_OK):
            why, mend = "/dev/kvm is not open to this user", "adduser $USER kvm, then log in again"
        else:
            why = "/dev/kvm opens, but no guest starts with it"
            mend = (
                "on a virtual host, ask for full nested virtualisation; the answer is remembered until the next reboot"
            )
        yield Finding("acceleration", "warn", f"guests are emulated, about ten times slower: {why}", mend)


def _memory(settings: Settings) -> Iterator[Finding]:
    import psutil

    from foundation.units import format_size
    from machines.ledger import host_capacity

    memory = psutil.virtual_memory()
    usable = host_capacity(settings).guest_memory_bytes
    text = (
        f"{format_size(memory.total)}, of which one machine may have {format_size(usable)}; "
        f"{format_size(memory.available)} is free now; {os.cpu_count()} CPUs"
    )
    if min(usable, memory.available) < _LEAST_MEMORY:
        yield Finding("memory", "fail", text, "end other programs, or lower TASKYARD_MEMORY_RESERVE")
    elif usable < _USUAL_MEMORY:
        yield Finding("memory", "warn", text, "manifests must ask for less than the usual 8G: vm.memory")
    else:
        yield Finding("memory", "ok", text)


def _disk(settings: Settings) -> Iterator[Finding]:
    from foundation.units import format_size

    place = settings.home
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("disk", "fail", f"{place} is not writable", "set TASKYARD_HOME to a directory of yours")
        return
    free = shutil.disk_usage(place).free
    text = f"{format_size(free)} free for {settings.home}"
    mend = "make room, or set TASKYARD_HOME to a directory on a larger disk"
    if free < _LEAST_DISK:
        yield Finding("disk", "fail", text, mend)
    elif free < _COMFORTABLE_DISK:
        yield Finding("disk", "warn", text, mend)
    else:
        yield Finding("disk", "ok", text)


def _sockets(settings: Settings) -> Iterator[Finding]:
    directory = settings.sockets
    if not directory.exists():
        yield Finding("sockets", "ok", f"will be in {directory}")
    elif directory.stat().st_uid != os.getuid() or not os.access(directory, os.W_OK):
        yield Finding(
            "sockets", "fail", f"{directory} belongs to another user", "remove it, or set another TASKYARD_HOME"
        )
    else:
        yield Finding("sockets", "ok", str(directory))


def _image(settings: Settings) -> Iterator[Finding]:
    from foundation.errors import ImageNotFound
    from foundation.units import format_size
    from machines.images.store import find_image

    try:
        image = find_image(settings, _DEFAULT_PROFILE)
    except ImageNotFound:
        text = f"the guest image of profile {_DEFAULT_PROFILE} is not built"
        yield Finding("image", "fail", text, "sandbox image build (takes a few minutes, once)")
    else:
        yield Finding("image", "ok", f"{image.profile} {image.digest[:12]}, {format_size(image.size_bytes)}")


def _services(settings: Settings) -> Iterator[Finding]:
    from cli.stack.up import prepare_engine, stack_holder
    from foundation.errors import TaskyardError
    from storage.bucket import Bucket

    holder = stack_holder(settings)
    if holder is not None:
        yield Finding("stack", "ok", f"runs since {holder.since} as process {holder.pid}")
    elif settings.embedded_temporal or settings.embedded_bucket:
        yield Finding("stack", "ok", "not running; 'sandbox up' starts it")
    services: dict[str, tuple[bool, str, Callable[[], None]]] = {
        "Temporal": (settings.embedded_temporal, settings.temporal_target, lambda: prepare_engine(settings)),
        "bucket": (settings.embedded_bucket, settings.s3_target, lambda: Bucket(settings).ensure()),
    }
    for name, (embedded, target, reach) in services.items():
        if embedded and holder is None:
            continue
        try:
            reach()
        except TaskyardError as error:
            yield Finding(name, "fail", error.message)
        else:
            yield Finding(name, "ok", f"answers at {target}")


def _ports(settings: Settings) -> Iterator[Finding]:
    from cli.stack.embedded import PARTS, needed_ports, port_conflict
    from cli.stack.up import stack_holder

    if stack_holder(settings) is not None:
        return
    elsewhere = {"temporal": not settings.embedded_temporal, "bucket": not settings.embedded_bucket}
    parts = [part for part in PARTS if not elsewhere.get(part, False)]
    conflicts = [text for part in parts if (text := port_conflict(settings, part))]
    for text in conflicts:
        yield Finding("ports", "fail", text)
    if not conflicts:
        count = sum(len(needed_ports(settings, part)) for part in parts)
        yield Finding("ports", "ok", f"all {count} that the stack listens on are free")


def _model(settings: Settings) -> Iterator[Finding]:
    if settings.model_is_scripted:
        yield Finding(
            "model",
            "warn",
            "scripted: runs play a scenario file, no real model answers",
            "set ANTHROPIC_API_KEY in the environment of 'sandbox up' or 'sandbox worker'",
        )
        return
    from foundation.errors import HostNotReady
    from foundation.urls import without_credentials

    address = without_credentials(settings.anthropic_base_url)
    try:
        through = _model_proxy(settings)
    except HostNotReady as error:
        yield Finding("model", "fail", error.message)
    else:
        by = f" through the proxy {without_credentials(through)}" if through else ""
        yield Finding("model", "ok", f"a key is set; requests go to {address}{by}")


def _model_proxy(settings: Settings) -> str | None:
    """Makes the client that the worker makes. Raises HostNotReady as that does."""
    import asyncio

    from foundation.proxies import proxy_for
    from worker.gateway.upstream import model_client

    asyncio.run(model_client(settings).aclose())
    return proxy_for(settings.anthropic_base_url)


def _prices(settings: Settings) -> Iterator[Finding]:
    if settings.price_table is None:
        return
    from foundation.errors import InvalidParameter
    from worker.gateway.prices import load_prices

    try:
        table = load_prices(settings.price_table)
    except InvalidParameter as error:
        yield Finding("prices", "fail", error.message, "mend the file, or unset TASKYARD_PRICE_TABLE")
    else:
        yield Finding("prices", "ok", f"{settings.price_table}, as of {table.as_of}")


def _vault(settings: Settings) -> Iterator[Finding]:
    if settings.vault_address is None:
        return
    from activities.machine.vault import Vault, VaultRefused

    try:
        with Vault(settings) as vault:
            yield Finding("Vault", "ok", vault.check())
    except VaultRefused as refused:
        yield Finding("Vault", "warn", f"no secret of source 'vault' {refused.reason}")


def _certificates(settings: Settings) -> Iterator[Finding]:
    from activities.machine.trust import host_authorities
    from foundation.errors import HostNotReady

    try:
        if host_authorities(settings.guest_certificates):
            yield Finding("certificates", "ok", f"guests trust those of {settings.guest_certificates} too")
    except HostNotReady as error:
        yield Finding("certificates", "fail", error.message)


def _network(settings: Settings) -> Iterator[Finding]:
    from foundation.errors import HostNotReady
    from worker.egress.policy import operator_rules

    try:
        operator_rules(settings)
    except HostNotReady as error:
        yield Finding("network", "fail", error.message)
    else:
        allowed = ", ".join(settings.egress_allowed_hosts) or "no host"
        yield Finding("network", "ok", f"in mode outbound, guests reach {allowed} beside their own hosts")
