"""What the shell offers while a command is typed: quick, and silent about whatever is not there to be asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from client import Task, TaskClient

# Whoever presses the tab key waits no longer than this for a server.
_SECONDS = 1.2
_IDS = 100

Offer = list[tuple[str, str]]


def contexts(incomplete: str) -> Offer:
    """Names of contexts, with their servers."""

    def find() -> Offer:
        from cli.config.contexts import load_contexts

        return [(name, context.server) for name, context in sorted(load_contexts().by_name.items())]

    return _begun(_soon(find), incomplete)


def task_ids(ctx: typer.Context, incomplete: str) -> Offer:
    """Ids of runs, newest first, with their names."""
    return _begun(
        _answer_of(ctx, lambda client: [(task.id, f"{task.state}: {task.name}") for task in _tasks(client)]), incomplete
    )


def places(ctx: typer.Context, incomplete: str) -> Offer:
    """Runs whose machines may have files, each with the colon behind which a path comes; paths are the shell's."""
    if ":" in incomplete or incomplete.startswith((".", "/")):
        return []
    return [(f"{word}:", about) for word, about in task_ids(ctx, incomplete)]


def artifact_names(ctx: typer.Context, incomplete: str) -> Offer:
    """Names of the artifacts of the run that was named before."""
    task_id = str(ctx.params.get("task_id"))
    return _begun(
        _answer_of(ctx, lambda client: [(found.name, found.content_type) for found in client.artifacts(task_id)]),
        incomplete,
    )


def machine_ids(incomplete: str) -> Offer:
    """Ids of this host's machines, and of the runs that they belong to."""

    def find() -> Offer:
        from foundation.settings import Settings
        from machines.host import MachineHost
        from workflows.names import RUNS

        records = MachineHost(Settings()).records()
        runs = [(RUNS.resource_id(record.owner_workflow) or record.owner_workflow, record.id) for record in records]
        return [(record.id, record.state) for record in records] + [pair for pair in runs if pair[0]]

    return _begun(_soon(find), incomplete)


def image_digests(incomplete: str) -> Offer:
    """Digests of this host's images."""

    def find() -> Offer:
        from foundation.settings import Settings
        from machines.images.store import list_images

        return [(image.digest[:12], image.profile) for image in list_images(Settings())]

    return _begun(_soon(find), incomplete)


def states(incomplete: str) -> Offer:
    """Another state of a comma-separated list."""
    words = (
        "pending", "staging", "provisioning", "ready", "running", "awaiting_decision", "completing",
        "completed", "failed", "failed_preserved", "cancelled",
    )  # fmt: skip
    before, comma, _ = incomplete.rpartition(",")
    return _begun([(f"{before}{comma}{word}", "") for word in words], incomplete)


def words(*known: str) -> Callable[[str], Offer]:
    """Offers these words."""

    def offer(incomplete: str) -> Offer:
        return _begun([(word, "") for word in known], incomplete)

    return offer


def _answer_of(ctx: typer.Context, ask: Callable[[TaskClient], Offer]) -> Offer:
    """What the server that the words typed so far choose has to say."""
    named: dict[str, Any] = {"server": None, "context": None}
    level: Any = ctx
    while level is not None:
        named = {name: value or level.params.get(name) for name, value in named.items()}
        level = level.parent
    try:
        # What takes its time whether or not a server is there is done before the clock runs.
        from cli.config.contexts import choose
        from client import TaskClient

        target = choose(named["server"], named["context"])
        client = TaskClient(target.server, target.token, timeout_seconds=_SECONDS)
    except Exception:  # noqa: BLE001 -- as below
        return []
    return _soon(lambda: ask(client))


def _tasks(client: TaskClient) -> list[Task]:
    return client.find(limit=_IDS).tasks


def _soon(find: Callable[[], Offer]) -> Offer:
    """What can be found in time; nothing when it takes longer or fails, for whatever reason."""
    found: Offer = []

    def look() -> None:
        try:
            found.extend(find())
        except Exception:  # noqa: BLE001 -- whoever types a command is not told why it cannot be completed
            return

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_SECONDS)
    return list(found)


def _begun(offer: Offer, incomplete: str) -> Offer:
    from cli.streams import clean

    return [
        (word, " ".join(clean(about).split()))
        for word, about in offer
        if word.startswith(incomplete) and clean(word) == word and "\n" not in word
    ]
