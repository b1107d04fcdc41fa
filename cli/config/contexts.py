"""Which server a command talks to: that of the option, of the environment or of a context that a person has named."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from foundation.durable import write_whole
from foundation.errors import NotFound, UsageError

DEFAULT_SERVER = "http://localhost:8122"
VARIABLES = ("TASKYARD_SERVER", "AGENTIC_SERVER")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True)
class Context:
    """A named server, and the bearer token that it wants, if any."""

    server: str
    token: str | None = None


@dataclass
class Contexts:
    """The named servers of one person; ``current`` is the name of the one in use, if any."""

    by_name: dict[str, Context] = field(default_factory=dict)
    current: str | None = None

    def named(self, name: str) -> Context:
        """The context of a name. Raises NotFound."""
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(sorted(self.by_name)) or "none yet; make one with 'sandbox config set-context'"
            raise NotFound(f"No context '{name}'; there are: {known}.") from None


def contexts_file() -> Path:
    """Where contexts are kept: contexts.toml in the user's configuration directory."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "taskyard" / "contexts.toml"


def load_contexts() -> Contexts:
    """The contexts of this user. Raises UsageError for a file that is not one of contexts."""
    path = contexts_file()
    try:
        data = tomllib.loads(path.read_text())
        found = {
            str(name): Context(str(fields["server"]), str(fields["token"]) if "token" in fields else None)
            for name, fields in data.get("contexts", {}).items()
        }
    except FileNotFoundError:
        return Contexts()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read as contexts ({error}); mend it or remove it.") from error
    current = data.get("current_context")
    return Contexts(found, str(current) if current is not None else None)


def save_contexts(contexts: Contexts) -> None:
    """Write the contexts, readable by their user alone, because they may hold tokens."""
    lines = [f"current_context = {_quoted(contexts.current)}"] if contexts.current is not None else []
    for name, context in sorted(contexts.by_name.items()):
        lines += ["", f"[contexts.{_quoted(name)}]", f"server = {_quoted(context.server)}"]
        if context.token is not None:
            lines.append(f"token = {_quoted(context.token)}")
    path = contexts_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(lines).lstrip() + "\n")


def checked(name: str, server: str, token: str | None) -> Context:
    """A context as it may be kept. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a context; use letters, digits, '.', '_' and '-'.")
    return _usable(Context(server.rstrip("/"), token))


def _usable(context: Context) -> Context:
    """The same context, if its server has an address and its token can be sent. Raises UsageError."""
    try:
        address = urlsplit(context.server if _URL.fullmatch(context.server) else "")
        fits = bool(address.hostname) and address.port != 0  # a port that is none raises
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"'{context.server}' is not the URL of a server; write one such as {DEFAULT_SERVER}.")
    token = context.token
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise UsageError("The token is empty or has characters that no token has.")
    return context


def choose(server: str | None, context: str | None) -> Context:
    """The server to talk to: the one named, else a context named, the environment, the current context, the default.

    A token goes to the server of its own context and to no other. Raises NotFound, UsageError.
    """
    contexts = load_contexts()
    if not server and context:
        return _usable(contexts.named(context))
    current = contexts.named(contexts.current) if contexts.current is not None else None
    named = server or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if named is None:
        return _usable(current or Context(DEFAULT_SERVER))
    same = current is not None and current.server == named.rstrip("/")
    return _usable(current if current is not None and same else Context(named))


def _quoted(text: str) -> str:
    # What JSON writes of printable characters is a basic string of TOML as well.
    return json.dumps(text)
