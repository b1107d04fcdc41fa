"""Git hosts that an operator has named: whose API they have and where, and which repository of theirs a URL is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

# A name and an address as git writes them.
AUTHOR = r"[^<>\x00-\x20\x7f][^<>\x00-\x1f\x7f]{0,100} ?<[^<>\x00-\x20\x7f]{1,200}>"

_SCP = re.compile(r"[A-Za-z0-9._-]+@([A-Za-z0-9.-]+):(?!//)(.+)")
_NAME = r"[A-Za-z0-9_.][A-Za-z0-9._-]{0,99}"
_SHORT = re.compile(rf"{_NAME}(?:/{_NAME}){{1,8}}")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")
_APIS = {"github": "/api/v3", "gitlab": "/api/v4", "gitea": "/api/v1"}
# The one host whose API has a name of its own.
_APART = {"https://github.com": "https://api.github.com"}

Kind = Literal["github", "gitlab", "gitea"]


class CredentialReference(BaseModel):
    """Where a git host's token lies, as secrets of a task say it."""

    model_config = ConfigDict(extra="forbid")

    source: Literal["env", "file", "vault"]
    key: str


class GitHost(BaseModel):
    """A git host. ``url`` is above its repositories, ``api`` above the paths of its published API."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    url: str
    api: str = ""
    ca_file: Path | None = None
    credentials: CredentialReference | None = None

    @field_validator("url", "api")
    @classmethod
    def _web_address(cls, value: str) -> str:
        value = value.rstrip("/")
        if not value:
            return value
        try:
            parts = urlsplit(value)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", 0
        if not host or port == 0 or parts.scheme not in {"http", "https"} or "@" in parts.netloc:
            raise ValueError("must be a URL that begins with https://, without a user")
        if parts.query or parts.fragment or not value.isprintable() or " " in value:
            raise ValueError("must be a URL without query and fragment")
        if parts.scheme == "http" and not _LOOPBACK.fullmatch(host):
            raise ValueError("must begin with https://: a token would cross the network as everybody can read it")
        return value

    @model_validator(mode="after")
    def _own_api(self) -> GitHost:
        if not self.url:
            raise ValueError("url must be given")
        self.api = self.api or _APART.get(self.url, self.url + _APIS[self.kind])
        return self

    def __str__(self) -> str:
        return f"{self.kind} at {self.url}"

    def repository(self, url: str) -> str | None:
        """The name (``org/repo``) of the repository with this URL; None when it is not of this host."""
        own = urlsplit(self.url)
        if match := _SCP.fullmatch(url):
            host, path = match[1], match[2]
        else:
            parts = urlsplit(url)
            host, path = parts.hostname or "", parts.path
            if parts.scheme != "ssh" and (parts.scheme, parts.port) != (own.scheme, own.port):
                return None
        above = own.path.strip("/")
        path = path.strip("/")
        if host.lower() != own.hostname or (above and not path.startswith(f"{above}/")):
            return None
        name = path.removeprefix(f"{above}/" if above else "").removesuffix(".git").rstrip("/")
        return name if _is_name(name) else None

    def repository_url(self, name: str) -> str:
        """The URL of the repository ``org/repo`` (of GitLab also one deeper in groups). Raises ValueError."""
        if not _is_name(name.removesuffix(".git")):
            raise ValueError(f"'{name[:100]}' names no repository; write it as org/repo")
        return f"{self.url}/{name.removesuffix('.git')}.git"


def host_of(hosts: Sequence[GitHost], url: str) -> tuple[GitHost, str] | None:
    """The host of the repository with this URL, and the repository's name there; None when none of them is."""
    return next(((host, name) for host in hosts if (name := host.repository(url)) is not None), None)


def repository_of(hosts: Sequence[GitHost], name: str) -> tuple[str, CredentialReference | None]:
    """The URL that is meant by ``org/repo``, and where the token for it lies, if the operator has given one.

    Raises ValueError with a sentence when no host is named, or the name is none of a repository.
    """
    if not hosts:
        raise ValueError("is meant to be on a git host, and this server names none in TASKYARD_GIT_HOSTS; write a URL")
    return hosts[0].repository_url(name), hosts[0].credentials


def _is_name(text: str) -> bool:
    return _SHORT.fullmatch(text) is not None and not any(part.endswith(".") for part in text.split("/"))
