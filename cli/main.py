"""Entry point of the command `sandbox`: the table of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cli import streams
from cli.options import asks_server, shared_options, writes_data

_USAGE = 2
_INTERRUPTED = 130

# Name: where it is, and its line in the help. A module is imported when its command runs, so that each starts quickly.
_COMMANDS = {
    "demo": ("cli.stack.demo:demo", "Watch one task run from submission to artifacts"),
    "up": ("cli.stack.up:up", "Run the whole stack in the foreground until Ctrl-C"),
    "task": ("cli.task.commands:app", "Submit, follow and end task runs, fetch their artifacts"),
    "machine": ("cli.vm.machine:app", "List, enter and end the machines of this host"),
    "image": ("cli.vm.image:app", "Build and list guest images"),
    "health": ("cli.stack.health:app", "Ask a server whether it is well"),
    "doctor": ("cli.host.doctor:doctor", "Say what is missing or slow on this host, and how to mend it"),
    "config": ("cli.config.commands:app", "Show all settings and where they come from; name servers"),
    "version": ("cli.stack.health:version", "Print the versions of this program and of the server"),
    "bench": ("cli.host.bench:bench", "Measure Taskyard beside the same work done by hand"),
    "server": ("cli.stack.processes:server", "Serve the REST API"),
    "worker": ("cli.stack.processes:worker", "Run the worker of this VM host"),
    "clean": ("cli.host.clean:clean", "Remove all that Taskyard keeps on this host"),
}


def run() -> None:
    """Run the command line and exit: 0, or the code of the error (foundation/errors.py)."""
    # The file system tools lie there, and Debian puts them into nobody's path but root's.
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(path + [extra for extra in ("/usr/sbin", "/sbin") if extra not in path])
    streams.prepare()
    code: Any = 1
    try:
        app()
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        code = _INTERRUPTED
    # From here on nothing is left to be broken off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unwritten = streams.finish()
    sys.exit(code or unwritten)


class LazyCommand(TyperCommand):
    """A command known by its help line only; the real one takes over when it is called."""

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command."""
        return self.load().make_context(info_name, args, parent=parent, **extra)

    def load(self) -> Any:
        """The real command."""
        module_name, _, attribute = self._target.partition(":")
        found = getattr(importlib.import_module(module_name), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        single = typer.Typer(add_completion=False, rich_markup_mode=app.rich_markup_mode)
        single.command(self.name)(found)
        return typer.main.get_command(single)


class _Sandbox(TyperGroup):
    """The group of all commands, in which TaskyardError becomes a sentence on stderr and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (target, summary) in _COMMANDS.items():
            self.add_command(LazyCommand(name, target, summary))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command that the arguments name, and exit with the code of what came of it."""
        streams.be_quiet(False)
        try:
            code = super().main(*args, **(extra | {"standalone_mode": False}))
        except Exception as error:  # noqa: BLE001 -- the last place where one can become a sentence
            sentence, code = _sentence_and_code(error)
            if sentence:
                streams.complain(sentence)
        sys.exit(code if isinstance(code, int) else 0)


def _sentence_and_code(error: Exception) -> tuple[str, int]:
    """The sentence of an error, empty where it has been printed already, and its exit code."""
    from foundation.errors import TaskyardError

    if isinstance(error, TaskyardError):
        return error.message, error.exit_code
    if isinstance(error, typer.Abort):
        # Ctrl-C at a question, or nobody there to answer it.
        return "Aborted.", _INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else 1
    misused = _misused(error)
    if misused is not None:
        return misused, _USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}.", 1
    if sys.flags.dev_mode:
        raise error
    return f"Taskyard did not expect this: {type(error).__name__}: {error}. PYTHONDEVMODE=1 shows where it happened.", 1


def _misused(error: Exception) -> str | None:
    """A sentence on a command line, or settings, that were not understood; None when the error is about another thing.

    The sentence is empty for a group that was named alone: its help has been printed.
    """
    show, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if not callable(show):
        return _settings_fault(error)
    sentence = str(show())
    if sentence and context is not None:
        sys.stderr.write(f"{streams.clean(context.get_usage())}\n")
    return sentence


app = typer.Typer(
    name="sandbox",
    cls=_Sandbox,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"sandbox {version('taskyard')}")
        raise typer.Exit


@app.callback()
@asks_server
@writes_data
def sandbox(
    ctx: typer.Context,
    watch: Annotated[
        str | None, typer.Option("--watch", metavar="DURATION", help="Show lists anew this often, such as 2s.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run coding-agent tasks to the end, each in a throw-away virtual machine, as durable workflows.

    Exit codes: 0 done; 1 failed, refused, or the run waited for did not complete; 2 not found, or the command line was
    not understood; 3 conflict; 4 not authorised; 5 timed out or not reachable; 130 interrupted; 141 nobody reads on.
    """
    ctx.obj = replace(shared_options(ctx), watch=watch)


def _settings_fault(error: Exception) -> str | None:
    """A sentence on settings that were refused; None when the error is about something else."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    if isinstance(error, SettingsError):
        # It says so of the field only, and in its sentence.
        field = re.search(r'field "(\w+)"', str(error))
        name = f"TASKYARD_{field[1].upper()}" if field else "A setting in the environment"
        return f"{name} is not readable as JSON, which lists and tables of settings are written in."
    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    faults = []
    for fault in error.errors(include_url=False, include_input=False):
        name = str(fault["loc"][0]) if fault["loc"] else "?"
        name = name if name.isupper() else f"TASKYARD_{name.upper()}"
        faults.append(f"{name}: {fault['msg'][:1].lower()}{fault['msg'][1:]} (it is {os.environ.get(name)!r})")
    return "; ".join(faults)
