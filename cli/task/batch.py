"""What is done to several runs by one command: to each by itself, with one exit code for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from cli.options import OutputFormat, format_of, open_client, print_data
from foundation.errors import TaskyardError

if TYPE_CHECKING:
    from client import TaskClient


def each_run(
    ctx: typer.Context,
    task_ids: list[str],
    act: Callable[[TaskClient, str], Any],
    in_words: Callable[[Any], str | None],
) -> None:
    """Do the same to each run and print its reply, ``in_words`` where no data is asked for.

    A run that is refused keeps none of the others from it, and sets the exit code.
    """
    from cli.streams import complain

    written = format_of(ctx, OutputFormat.TEXT)
    replies: list[Any] = []
    refused: list[TaskyardError] = []
    with open_client(ctx) as client:
        for task_id in task_ids:
            try:
                reply = act(client, task_id)
            except TaskyardError as error:
                if len(task_ids) == 1:
                    raise
                complain(error.message)
                refused.append(error)
                continue
            replies.append(reply)
            if written in {OutputFormat.JSON, OutputFormat.YAML}:
                continue
            words = str(reply["task_id"]) if written is OutputFormat.NAME else in_words(reply)
            if words is not None:
                typer.echo(words)
    print_data(replies[0] if len(task_ids) == 1 else replies, written)
    if refused:
        raise typer.Exit(refused[0].exit_code)
