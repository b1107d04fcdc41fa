"""`sandbox task interrupt`, `approve`, `deny`, `answer`, `configure` and `messages`: steering the agent of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import completion
from cli.options import OutputFormat, TaskId, asks_server, format_of, open_client, print_data, writes_data
from foundation.errors import Conflict, UsageError

if TYPE_CHECKING:
    from client import PermissionRequest, TaskClient

_MODES = ("default", "acceptEdits", "plan", "auto", "dontAsk", "bypassPermissions")

RequestId = Annotated[
    str | None,
    typer.Argument(metavar="[REQUEST]", help="Id of the request; default: the only open one.", show_default=False),
]


@asks_server
@writes_data
def interrupt(ctx: typer.Context, task_id: TaskId) -> None:
    """Stop what the agent does now. The run goes on: its agent waits for the next message.

    Example: sandbox task interrupt 1ssrg4b-k3f9q
    """
    from cli.terminal import talk

    with open_client(ctx) as client:
        interrupted = client.interrupt(task_id)
    if not print_data({"task_id": task_id, "interrupted": interrupted}, format_of(ctx, OutputFormat.TEXT)):
        talk().print("Interrupted." if interrupted else "The agent did nothing that could be interrupted.")


@asks_server
@writes_data
def approve(
    ctx: typer.Context,
    task_id: TaskId,
    request_id: RequestId = None,
    always: Annotated[bool, typer.Option("--always", help="Ask no more about this in this session.")] = False,
) -> None:
    """Permit what the agent asks. 'sandbox task status' shows what that is.

    Example: sandbox task approve 1ssrg4b-k3f9q
    """
    _answer(ctx, task_id, request_id, "allow_always" if always else "allow")


@asks_server
@writes_data
def deny(
    ctx: typer.Context,
    task_id: TaskId,
    request_id: RequestId = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What the agent is told with it.")] = None,
) -> None:
    """Do not permit what the agent asks.

    Example: sandbox task deny 1ssrg4b-k3f9q -m "Use the test database instead."
    """
    _answer(ctx, task_id, request_id, "deny", message=message)


@asks_server
@writes_data
def answer(
    ctx: typer.Context,
    task_id: TaskId,
    answers: Annotated[
        list[str], typer.Argument(metavar="ANSWER...", help="One for each question, in order.", show_default=False)
    ],
    request_id: Annotated[
        str | None, typer.Option("--request", help="Id of the request; default: the only open one.", show_default=False)
    ] = None,
) -> None:
    """Answer the agent's own questions. 'sandbox task status' shows them.

    Example: sandbox task answer 1ssrg4b-k3f9q "PostgreSQL"
    """
    _answer(ctx, task_id, request_id, "allow", answers=answers)


@asks_server
@writes_data
def configure(
    ctx: typer.Context,
    task_id: TaskId,
    model: Annotated[str | None, typer.Option("--model", help="Model to be asked from now on.")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--permission-mode",
            help="default, acceptEdits, plan, auto, dontAsk or bypassPermissions.",
            autocompletion=completion.words(*_MODES),
        ),
    ] = None,
) -> None:
    """Change the agent's model or permission mode, from its next request to the model on.

    Example: sandbox task configure 1ssrg4b-k3f9q --permission-mode plan
    """
    from cli.terminal import talk

    if model is None and mode is None:
        raise UsageError("Say what is to be changed: --model NAME, --permission-mode MODE, or both.")
    with open_client(ctx) as client:
        reply = client.configure(task_id, model=model, permission_mode=mode)
    if not print_data(reply.model_dump(mode="json"), format_of(ctx, OutputFormat.TEXT)):
        talk().print("The agent has confirmed.")


@asks_server
@writes_data
def messages(
    ctx: typer.Context,
    task_id: TaskId,
    clear: Annotated[bool, typer.Option("--clear", help="Drop them.")] = False,
) -> None:
    """Show the messages that the agent has not got yet, or drop them.

    Example: sandbox task messages 1ssrg4b-k3f9q --clear
    """
    from cli.terminal import talk

    written = format_of(ctx, OutputFormat.TEXT)
    with open_client(ctx) as client:
        if clear:
            cleared = client.clear_messages(task_id)
            if not print_data(cleared.model_dump(mode="json"), written):
                talk().print(f"{len(cleared.cleared)} messages are not delivered.")
                if cleared.delivering:
                    talk().print(f"The delivery of {cleared.delivering} was under way: it may arrive.")
            return
        waiting = client.messages(task_id)
    if not print_data(waiting.model_dump(mode="json"), written):
        for each in waiting.messages:
            typer.echo(f"{each.id}\t{' '.join(each.text.split())}")


def _answer(
    ctx: typer.Context,
    task_id: str,
    request_id: str | None,
    decision: str,
    *,
    message: str | None = None,
    answers: list[str] | None = None,
) -> None:
    from cli.terminal import talk

    with open_client(ctx) as client:
        by_question = None
        if answers is not None or request_id is None:
            request = _open_request(client, task_id, request_id)
            request_id = request.request_id
            if answers is not None:
                by_question = _by_question(request, answers)
        reply = client.answer(task_id, request_id, decision, message=message, answers=by_question)
    if not print_data(reply.model_dump(mode="json"), format_of(ctx, OutputFormat.TEXT)):
        talk().print("Answered." if reply.delivered else "The agent gets the answer when its machine is awake.")


def _open_request(client: TaskClient, task_id: str, request_id: str | None) -> PermissionRequest:
    """The request that is meant. Raises Conflict when there is none, UsageError when it is not clear which."""
    found = client.permission_requests(task_id)
    if request_id is not None:
        found = [each for each in found if each.request_id == request_id]
    if not found:
        raise Conflict(f"The agent of task '{task_id}' asks nothing that waits for an answer.")
    if len(found) > 1:
        raise UsageError(
            f"The agent has {len(found)} requests open; say which is meant: "
            + ", ".join(f"{each.request_id} ({each.tool})" for each in found)
        )
    return found[0]


def _by_question(request: PermissionRequest, answers: list[str]) -> dict[str, str]:
    questions = request.questions()
    if not questions:
        raise UsageError(f"The agent asks for a permission ({request.tool}): approve or deny it.")
    if len(questions) != len(answers):
        raise UsageError(f"The agent has {len(questions)} questions, and these are {len(answers)} answers.")
    return dict(zip(questions, answers, strict=True))
