"""Who git is towards a repository's server: this host as it is configured, or a run by one secret of its own.

A secret is for the server of the run's repository alone. It lies in memory that has no name in any file system, which
git's helpers read through the worker's process: it stands in no argument, no variable, no file and no configuration,
and is gone with the worker. Towards other servers such a run is nobody.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from activities.machine.secrets import resolve_all
from activities.repository.git import CONNECTION, allowed_protocols, host_configuration, remote_environment
from foundation.child_environment import NETWORK, child_environment
from foundation.errors import SecretUnavailable
from foundation.settings import Settings
from storage.redaction import Redactor
from workflows.specs.wire import Repository, SecretReference

# The user of a token that is given without one: who the servers that read it take for a token's bearer.
_TOKEN_USER = "x-access-token"  # noqa: S105 -- a user's name
_KEY = re.compile(r"\s*-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")
_SCP = re.compile(r"^[A-Za-z0-9._-]+@([A-Za-z0-9.-]+):(?!//)")
# Of the host's own git configuration, the way to a server and whom to trust on it.
_WAYS = frozenset({"http.proxy", "http.proxyauthmethod", "http.sslcainfo", "http.sslcapath", "http.sslverify"})
_WAYS_IN_ENVIRONMENT = ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_NO_VERIFY")
# Servers whose mirrors nobody's credentials have filled.
_NOBODY = "nobody"


@dataclass(frozen=True)
class Access:
    """A way to servers. ``secret`` is the name of the secret it stands on, None for the host's configuration."""

    settings: Settings
    secret: str | None = None
    server: str = ""
    realm: str = ""
    pinned: bool = False
    redactor: Redactor = field(default_factory=lambda: Redactor({}))
    _helper: str = ""
    _ssh: str = ""

    def environment(self, url: str) -> dict[str, str]:
        """The environment of a git that talks to the server of ``url``."""
        if self.secret is None:
            return remote_environment(self.settings)
        mine = self.is_for(url)
        pairs = {"credential.helper": "", **_ways(url)}
        if mine and self._helper:
            pairs[f"credential.{self.server}.helper"] = self._helper
        ssh = self._ssh if mine and self._ssh else _ssh("-o IdentityFile=none")
        return child_environment(
            (*NETWORK, *_WAYS_IN_ENVIRONMENT),
            **_configuration(pairs),
            HOME="/nonexistent",
            GIT_CONFIG_GLOBAL=os.devnull,
            GIT_CONFIG_NOSYSTEM="1",
            GIT_ALLOW_PROTOCOL=":".join(allowed_protocols(self.settings)),
            GIT_TERMINAL_PROMPT="0",
            GIT_ASKPASS="",
            SSH_ASKPASS_REQUIRE="never",
            GIT_SSH_COMMAND=ssh,
            GIT_SSH_VARIANT="ssh",
            GIT_OPTIONAL_LOCKS="0",
            LC_ALL="C",
        )

    def is_for(self, url: str) -> bool:
        """Whether the secret may be shown to the server of ``url``."""
        return self.secret is not None and server_of(url) == self.server

    def realm_of(self, url: str) -> str:
        """What mirrors of ``url`` are kept apart by: only runs of one realm read what one of them fetched."""
        if self.secret is None:
            return ""
        return self.realm if self.is_for(url) else _NOBODY


def server_of(url: str) -> str:
    """Scheme, host and port of a repository's URL, in one spelling."""
    if match := _SCP.match(url):
        return f"ssh://{match[1].lower()}"
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = None if (parts.scheme, parts.port) in {("https", 443), ("http", 80), ("ssh", 22)} else parts.port
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"


@contextmanager
def opened(settings: Settings, repository: Repository, reference: SecretReference | None) -> Iterator[Access]:
    """The access of a run, usable while the block runs. Raises SecretUnavailable."""
    if reference is None:
        yield Access(settings)
        return
    value = resolve_all(settings, [reference])[reference.name].strip()
    server = server_of(repository.url)
    with ExitStack() as stack:
        helper = ssh = ""
        if _KEY.match(value):
            if not server.startswith("ssh:"):
                raise _unfit(
                    reference, "is an SSH key, and repository.url is no SSH URL; name a token, or change the URL"
                )
            ssh = _with_key(stack, reference, value, repository.known_hosts)
        else:
            if server.startswith("ssh:"):
                raise _unfit(
                    reference, "is no SSH private key, which repository.url wants; name one, or use an https URL"
                )
            helper = _with_token(stack, reference, value)
        yield Access(
            settings,
            secret=reference.name,
            server=server,
            realm=f"{reference.source}:{reference.key}",
            pinned=repository.known_hosts is not None,
            redactor=Redactor({reference.name: value if ssh else value.partition(":")[2] or value}),
            _helper=helper,
            _ssh=ssh,
        )


def _with_token(stack: ExitStack, reference: SecretReference, value: str) -> str:
    """A helper that answers git's question for credentials. The value is a token, or ``user:token``."""
    user, colon, token = value.partition(":")
    if not colon:
        user, token = _TOKEN_USER, value
    if not user or not token or re.search(r"[\x00-\x20\x7f]", value):
        raise _unfit(reference, "is neither a token, nor user:token, nor an SSH private key; it is used for git")
    place = stack.enter_context(_in_memory(f"username={user}\npassword={token}\n".encode()))
    return f'!f() {{ test "$1" = get && cat {place}; }}; f'


def _with_key(stack: ExitStack, reference: SecretReference, value: str, known_hosts: str | None) -> str:
    # As ssh wants it: lines of its own kind, the last one ended too.
    key = re.sub(r"\r\n?", "\n", value).encode() + b"\n"
    if _is_locked(key):
        raise _unfit(reference, "is an SSH key with a passphrase, for which nobody can be asked; name one without")
    place = stack.enter_context(_in_memory(key))
    words = f"-o IdentityFile={place}"
    if known_hosts is not None:
        pins = stack.enter_context(_in_memory(known_hosts.strip().encode() + b"\n"))
        words += f" -o UserKnownHostsFile={pins} -o GlobalKnownHostsFile=none"
    return _ssh(words)


def _ssh(identity: str) -> str:
    return (
        f"ssh -F none {identity} -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=yes "
        "-o UpdateHostKeys=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o ForwardAgent=no "
        f"-o ClearAllForwardings=yes {CONNECTION}"
    )


def _is_locked(key: bytes) -> bool:
    """Whether the key can only be read with a passphrase; False for kinds of keys that only ssh knows."""
    load = load_ssh_private_key if b"BEGIN OPENSSH" in key else load_pem_private_key
    try:
        load(key, password=None)
    except TypeError:
        return True
    except Exception:  # noqa: BLE001 -- ssh reads more kinds, and says itself what it cannot read
        return False
    return False


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path by which programs of this user read the content while the block runs; no file, and none is left."""
    descriptor = os.memfd_create("taskyard", os.MFD_CLOEXEC)
    try:
        # ssh wants to see that nobody else may read a key.
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _ways(url: str) -> dict[str, str]:
    """What the host's own configuration says of the way to a server."""
    if not url.startswith("http"):
        return {}
    command = ["git", "config", "--null", "--get-urlmatch", "http", url]
    environment = child_environment(**host_configuration())
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, check=False)
    rows = (row.partition("\n") for row in done.stdout.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in rows if name.lower() in _WAYS}


def _configuration(pairs: Mapping[str, str]) -> dict[str, str]:
    """Settings of git as variables, which outrank its files."""
    variables = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (name, value) in enumerate(pairs.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _unfit(reference: SecretReference, reason: str) -> SecretUnavailable:
    return SecretUnavailable(
        f"Secret {reference.name}, which repository.credentials names, {reason}.",
        name=reference.name,
        source=reference.source,
        key=reference.key,
    )
