"""`sandbox task`: its commands, of which those that submit and those that read are modules of their own."""

from __future__ import annotations

import sys
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completion
from cli.options import (
    OutputFormat,
    TaskId,
    TaskIds,
    asks_server,
    format_of,
    open_client,
    print_data,
    shared_options,
    writes_data,
)
from cli.task import inside, ports, reading, submission
from cli.task.agent import steering
from cli.task.batch import each_run
from cli.task.files import copying
from cli.task.network import network
from cli.task.reading import Timeout, detachable, exit_by_outcome
from foundation.errors import UsageError

if TYPE_CHECKING:
    from client import TaskClient

_HELP = "Submit, follow and end task runs, fetch their artifacts."

app = typer.Typer(no_args_is_help=True, help=_HELP)

_LIST_SECONDS = "2s"


@app.callback()
@asks_server
@writes_data
def task(ctx: typer.Context) -> None:
    """Submit, follow and end task runs, fetch their artifacts."""


app.command()(submission.submit)
app.command()(submission.validate)
app.command()(submission.retry)
app.command()(submission.resume)
app.command("cp")(copying.copy)


@app.command("list")
@asks_server
@writes_data
def list_tasks(
    ctx: typer.Context,
    state: Annotated[
        str | None, typer.Option("--state", help="Comma-separated states.", autocompletion=completion.states)
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows to show; default: 100.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Rows to skip.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            help="created_at, started_at, state_changed_at or name.",
            autocompletion=completion.words("created_at", "started_at", "state_changed_at", "name"),
        ),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", help="asc or desc.", autocompletion=completion.words("asc", "desc"))
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the list anew every 2 s, until Ctrl-C.")] = False,
) -> None:
    """List runs, newest first.

    A table that fits the terminal; --format text writes a line for each run, its fields divided by tabs: id, state,
    time of creation, name.

    Example: sandbox task list --state running,completing --label team=platform
    """
    from cli.task.view import print_found
    from cli.task.watch import repeat

    wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
    labels = dict(_label(text) for text in label or [])
    written = format_of(ctx, OutputFormat.TABLE)
    every = shared_options(ctx).watch or (_LIST_SECONDS if watch else None)
    seconds = None if every is None else reading.pause_seconds(every)
    with open_client(ctx) as client:

        def show() -> None:
            print_found(client.find_raw(wanted, labels), written)

        if seconds is None:
            show()
        else:
            repeat(show, seconds)


@app.command()
@asks_server
@writes_data
def status(
    ctx: typer.Context,
    task_ids: TaskIds,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    timeout: Timeout = None,
) -> None:
    """Show runs. With --watch one, until it ends; the exit code is then 0 only when it completes.

    Example: sandbox task status 1ssrg4b-k3f9q --watch
    """
    from cli.task.view import print_task, print_tasks
    from client import Task

    seconds = reading.timeout_seconds(timeout, "--watch", waiting=watch)
    written = format_of(ctx, OutputFormat.TEXT)
    with open_client(ctx) as client:
        if watch:
            if len(task_ids) != 1:
                raise UsageError("--watch takes one run; 'sandbox task wait' takes several.")
            task_id = task_ids[0]
            with detachable(task_id, "status", "--watch"):
                if written in {OutputFormat.JSON, OutputFormat.YAML}:
                    ended = client.wait(task_id, timeout_seconds=seconds)
                    print_data(client.raw(task_id), written)
                else:
                    from cli.task.watch import watch as watch_run

                    ended = watch_run(client, task_id, seconds)
            exit_by_outcome(ended)
        found = [client.raw(task_id) for task_id in task_ids]
    if print_data(found[0] if len(found) == 1 else found, written):
        return
    runs = [Task.model_validate(each) for each in found]
    if written is not OutputFormat.TEXT:
        print_tasks(runs, written)
        return
    for place, each in enumerate(runs):
        if place:
            typer.echo()
        print_task(each)


app.command("get", help="The same as status.\n\nExample: sandbox task get 1ssrg4b-k3f9q --format json")(status)


@app.command("wait")
@asks_server
@writes_data
def wait_for(ctx: typer.Context, task_ids: TaskIds, timeout: Timeout = None) -> None:
    """Wait until all of the runs have ended; each is told when it has, by its id and state.

    The exit code is 0 when all of them completed, else 1; 5 when the time is over.

    Example: sandbox task wait ID1 ID2 --timeout 30m
    """
    from cli.task.watch import wait_for_all

    seconds = None if timeout is None else reading.pause_seconds(timeout)
    with open_client(ctx) as client:
        done = wait_for_all(client, task_ids, seconds, format_of(ctx, OutputFormat.TEXT))
    raise typer.Exit(0 if done else 1)


@app.command()
@asks_server
@writes_data
def cancel(
    ctx: typer.Context,
    task_ids: TaskIds,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept with the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Kill the agent without its 30 s of grace.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End runs: their agents are stopped, their artifacts are collected, their machines are torn down.

    At a terminal it asks first; in a script it does not.

    Example: sandbox task cancel 1ssrg4b-k3f9q --reason "wrong branch"
    """

    def end(client: TaskClient, task_id: str) -> Any:
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            task = client.get(task_id)
            if not task.terminal:
                typer.confirm(f"Cancel task {task_id}, which is {task.state}?", abort=True, err=True)
        return client.cancel(task_id, reason, force=force)

    each_run(ctx, task_ids, end, lambda reply: str(reply.get("message") or "Cancellation requested"))


@app.command()
@asks_server
@writes_data
def message(
    ctx: typer.Context,
    task_id: TaskId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; '-' reads stdin.", show_default=False)],
    message_id: Annotated[str | None, typer.Option("--id", help="Sending the same id again changes nothing.")] = None,
) -> None:
    """Send the running agent a further message.

    Example: sandbox task message 1ssrg4b-k3f9q "Please update the changelog too."
    """
    from cli.terminal import talk

    with open_client(ctx) as client:
        reply = client.message(task_id, sys.stdin.read() if text == "-" else text, message_id)
    if not print_data(reply, format_of(ctx, OutputFormat.TEXT)):
        talk().print("Sent.")


app.command()(steering.messages)
app.command()(steering.interrupt)
app.command()(steering.approve)
app.command()(steering.deny)
app.command()(steering.answer)
app.command()(steering.configure)


@app.command()
@asks_server
@writes_data
def close(ctx: typer.Context, task_ids: TaskIds) -> None:
    """Let sessions with 'headless: false' end after their last answers.

    Example: sandbox task close 1ssrg4b-k3f9q
    """
    from cli.terminal import talk

    def end(client: TaskClient, task_id: str) -> Any:
        reply = client.close_session(task_id)
        talk().print(f"The session of {task_id} ends after its last answer.")
        return reply

    each_run(ctx, task_ids, end, lambda _reply: None)


app.command()(network)


@app.command("continue")
@asks_server
@writes_data
def continue_(
    ctx: typer.Context,
    task_id: TaskId,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="USD", help="US dollars to add to the budget.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="NUMBER", help="Tokens to add to it.")] = None,
) -> None:
    """Let a run go on that has used up its budget and waits in the state awaiting_decision.

    Its agent goes on where it was, in the same session, once its host has room for its machine. To end the run
    instead, cancel it.

    Example: sandbox task continue 1ssrg4b-k3f9q --budget 5
    """
    from cli.terminal import talk
    from client import Continued

    if budget is None and tokens is None:
        raise UsageError("Say how much is added: --budget USD, --tokens NUMBER, or both.")
    if budget is not None and not isfinite(budget):
        raise UsageError("--budget takes a number of US dollars.")
    if not max(budget or 0.0, tokens or 0) > 0 or min(budget or 0.0, tokens or 0) < 0:
        raise UsageError("What is added to a budget is more than nothing; to end the run instead, cancel it.")
    with open_client(ctx) as client:
        reply = client.continue_task_raw(task_id, budget_usd=budget, tokens=tokens)
    if not print_data(reply, format_of(ctx, OutputFormat.TEXT)):
        limits = Continued.model_validate(reply)
        words = [
            *([f"${limits.budget_usd:.2f}"] if limits.budget_usd is not None else []),
            *([f"{limits.budget_tokens:,} tokens"] if limits.budget_tokens is not None else []),
        ]
        talk().print(f"{task_id} goes on with a budget of {' and '.join(words)}.")


app.command("exec", cls=inside.WithCommand)(inside.exec_)
app.command()(inside.shell)
app.command()(ports.port)
app.command()(reading.logs)
app.command()(reading.artifacts)
app.command()(reading.download)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"'{text}' is not a label; write --label KEY=VALUE.")
    return key, value
