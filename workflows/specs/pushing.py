"""Pushing a run's work: which branch it goes to, whose commit it is, and which secrets open the git host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from foundation.faults import Fault
from foundation.git.hosts import AUTHOR
from workflows.specs import access, wire

MAX_BRANCH = 200
MAX_TITLE = 250
MAX_TEXT = 60_000
MAX_NAME = 128

_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.lock(/|$)|^[-/]|[/.]$|^@$")
_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_OWN = "taskyard/"


def branch_name(text: str) -> str:
    """The text, when git takes it as the name of a branch. Raises ValueError with a sentence."""
    if _NO_REF.search(text):
        raise ValueError("is not a branch name that git takes")
    return text


def _new_branch(text: str) -> str:
    if text == "HEAD" or text.startswith("refs/"):
        raise ValueError("is no name for a branch of its own")
    return branch_name(text)


def own_branch(task_id: str) -> str:
    """The branch of a run that names none."""
    name = _OWN + task_id
    return name if not _NO_REF.search(name) else _OWN + task_id.replace(".", "-")


def signature(text: str) -> str:
    """The text, when it is a name and an address as git writes them. Raises ValueError with a sentence."""
    if not re.fullmatch(AUTHOR, text) or len(text) > MAX_TITLE:
        raise ValueError(f"must be of the form 'Name <address>', {MAX_TITLE} characters at most")
    return text


def _line(text: str) -> str:
    if not text.strip() or _LINE.search(text) or len(text) > MAX_TITLE:
        raise ValueError(f"must be one line of text without control characters, {MAX_TITLE} characters at most")
    return text


def _text(text: str) -> str:
    if _TEXT.search(text) or len(text) > MAX_TEXT:
        raise ValueError(f"must be text without control characters, {MAX_TEXT} characters at most")
    return text


def _message(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _text(text)


Branch = Annotated[str, AfterValidator(_new_branch), Field(min_length=1, max_length=MAX_BRANCH)]
SecretName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class PullRequest(wire.PullRequest):
    """What asks for the pushed branch to be merged."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, AfterValidator(_line)] | None = None
    body: Annotated[str, AfterValidator(_text)] = ""
    base: Branch | None = None
    credentials: SecretName | None = None


class Push(wire.Push):
    """The branch to which a run that succeeds pushes its work."""

    model_config = ConfigDict(extra="forbid")

    branch: Branch | None = None
    message: Annotated[str, AfterValidator(_message)] | None = None
    author: Annotated[str, AfterValidator(signature)] | None = None
    credentials: SecretName | None = None
    pull_request: PullRequest | None = None


def faults(repository: wire.Repository, secrets: Sequence[wire.SecretReference]) -> Iterator[Fault]:
    """What keeps a repository from being pushed to, beside what each field may hold."""
    push = repository.push
    if push is None:
        return
    asked = push.pull_request
    if repository.url.startswith("file://"):
        yield Fault("repository.push", "needs a git server; repository.url names a directory of the VM host", "unused")
        return
    named = {"repository.push.credentials": push.credentials}
    if asked is not None:
        named["repository.push.pull_request.credentials"] = asked.credentials
    known = {secret.name for secret in secrets}
    for field, name in named.items():
        if name is not None and name not in known:
            message = "is the name of no secret of this manifest; add it to 'secrets', or correct the name"
            yield Fault(field, message, "unknown_reference")
    if push.credentials is None and repository.credentials is None:
        message = "is required where something is pushed: the name of a secret of 'secrets' that may write"
        yield Fault("repository.push.credentials", message, "required")
    elif push.credentials is not None and access.is_sent_open(repository.url):
        message = "would be sent unencrypted; let repository.url begin with https://, or with ssh://"
        yield Fault("repository.push.credentials", message, "unencrypted")
    base = (asked and asked.base) or repository.branch
    if push.branch in {repository.branch, base}:
        message = f"must not be '{push.branch}', on which the work is based; name a branch of its own"
        yield Fault("repository.push.branch", message, "base_branch")
    if asked is not None and asked.credentials is None and access.is_ssh(repository.url):
        message = "is required with an SSH URL, whose key opens no API: the name of a secret that holds a token"
        yield Fault("repository.push.pull_request.credentials", message, "required")
