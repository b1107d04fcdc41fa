"""Settings of every process, read from the environment with the prefix TASKYARD_.

Above 400 lines: what an operator can set is one list, read as a whole, and a setting is a few lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import stat
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from foundation.durable import write_once
from foundation.errors import HostNotReady
from foundation.git.hosts import AUTHOR, GitHost
from foundation.units import parse_duration, parse_size

# A unix socket's address holds 108 bytes; the longest name below the socket directory takes 40 of them.
_SOCKET_DIR_MAX = 66
_OTHERS = 0o077
_KEY_CHARS = 32
# A host name has 253 characters, and the label of a port 63.
_DOMAIN_CHARS = 253 - 64
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")


RateKind = Literal["submit", "list", "get", "logs", "stream"]


def _default_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "taskyard"


class Settings(BaseSettings):
    """What an operator can set. ``sandbox config`` prints all of it with the values in force."""

    model_config = SettingsConfigDict(env_prefix="TASKYARD_", extra="ignore", populate_by_name=True)

    home: Path = Field(default_factory=_default_home, description="Directory of all state on this host")
    image_dir: Path | None = Field(None, description="Directory of guest images; default: images/ below home")
    log_format: Literal["text", "json"] = Field("text", description="Format of the processes' own logs")

    api_host: str = Field("127.0.0.1", description="Address the REST API listens on")
    api_port: int = Field(8122, ge=1, le=65535, description="Port the REST API listens on")

    ws_port: int = Field(8121, ge=1, le=65535, description="Port the WebSocket of task events listens on")
    rate_limits: dict[RateKind, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Requests of one client in a minute, by kind: submit, list, get, logs; and stream, the WebSocket "
        "streams that it may have open at once. What is not named has no limit",
    )
    allowed_origins: list[str] = Field(
        [],
        description="Origins whose web pages may use the API from a browser, such as https://tasks.example.org, beside "
        "its own pages at an IP address or localhost",
    )
    token_keys: list[Path] = Field(
        [],
        description="PEM files of RSA keys: the first signs tokens for single runs, the others signed before it and "
        "are still accepted; all servers need the same. Default: one key that is made at first start",
    )
    api_keys: list[SecretStr] = Field(
        [],
        description="Keys of the clients that have to show one, at least 32 characters each: those of the task-runs "
        "API below /api/projects; default: one that is made at first start, which 'sandbox config key' shows",
    )
    default_vm: dict[str, Any] = Field(
        default_factory=dict,
        description="Machine of a run whose client cannot say one, as a manifest's vm: the task-runs API's",
    )
    sandbox_domain: str | None = Field(
        None,
        description="Domain below which every port of every machine has a host name, PORT-ID.DOMAIN, which all lead to "
        "this API, such as sandboxes.example.org or, on one's own host, sandbox.localhost; one that nothing else is "
        "below. Not set: ports are reached by path",
    )
    worker_metrics_port: int = Field(
        8123, ge=0, le=65535, description="Loopback port of the worker's metrics; 0: it has none"
    )

    temporal_address: str | None = Field(
        None, description="host:port of a Temporal cluster; default: the embedded dev server"
    )
    temporal_namespace: str = Field("default", description="Temporal namespace")
    temporal_tls: bool = Field(False, description="Use TLS towards Temporal")
    temporal_api_key: SecretStr | None = Field(None, description="API key for Temporal Cloud")
    temporal_port: int = Field(7233, ge=1, le=65535, description="Port of the embedded Temporal dev server")
    temporal_ui_port: int = Field(8233, ge=1, le=65535, description="Port of the embedded Temporal web UI")
    task_queue: str = Field("taskyard", description="Temporal task queue that every worker polls")

    s3_endpoint: str | None = Field(None, description="host:port of an S3 service; default: the embedded server")
    s3_secure: bool = Field(False, description="Use TLS towards the S3 service")
    s3_access_key: str | None = Field(None, description="S3 access key; default: made at first start")
    s3_secret_key: SecretStr | None = Field(None, description="S3 secret key; default: made at first start")
    s3_region: str = Field("us-east-1", description="S3 region")
    s3_bucket: str = Field("taskyard", description="Bucket of logs, artifacts and final records")
    s3_public_url: str | None = Field(
        None,
        description="URL at which clients reach the S3 service, such as https://bucket.example.org: presigned URLs "
        "begin with it. Default: the address at which this server reaches it",
    )
    retention_days: int = Field(
        30,
        ge=0,
        le=36500,
        description="Days for which the bucket keeps logs, artifacts and records of runs, by a rule of its life cycle; "
        "0: without an end",
    )
    s3_port: int = Field(8333, ge=1, le=65535, description="Port of the embedded S3 server")

    host_name: str = Field(default_factory=socket.gethostname, description="Name of this VM host")
    host_listen: str | None = Field(
        None,
        description="host:port at which this VM host's service is reached over TLS by API servers on other hosts; "
        "default: by those of the same home alone",
    )
    host_address: str | None = Field(
        None, description="host:port at which the servers find it; default: where it listens, or this host's name"
    )
    host_key: SecretStr | None = Field(
        None,
        description="Key that API servers and VM hosts share, at least 32 characters: whoever has it may enter "
        "every machine; default: made at first start, for the processes of this home",
    )
    host_certificate: Path | None = Field(
        None, description="PEM file with the certificate of the host's service; default: made at first start"
    )
    host_certificate_key: Path | None = Field(None, description="PEM file with the certificate's private key")
    cpu_overcommit: float = Field(4.0, ge=1, description="Virtual CPUs handed out for each real one")
    memory_reserve: str = Field("1G", description="Memory of this host that machines may not use")
    acceleration: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto boots a tiny guest once to see whether KVM really works"
    )
    use_snapshots: bool = Field(
        True, description="Restore new machines from a memory snapshot of their shape instead of booting them"
    )
    snapshot_limit: str = Field("10G", description="Disk that snapshots may use; the longest unused go first")
    mirror_limit: str = Field(
        "20G", description="Disk that mirrors of repositories may use; the longest unused go first, none in use"
    )
    warm_pool: int = Field(
        0, ge=0, description="Machines of each shape in use that a worker keeps restored and ready to be handed over"
    )
    image_mirror: str | None = Field(None, description="Debian mirror for image builds; default: the host's own")
    guest_certificates: Path | None = Field(
        None, description="PEM file of authorities that guests trust beside those of their image"
    )
    allow_file_repositories: bool = Field(False, description="Allow file:// repositories of this host")
    git_hosts: list[GitHost] = Field(
        default_factory=lambda: [GitHost(kind="github", url="https://github.com")],
        description="Git hosts as a JSON list, each with its kind (github, gitlab, or gitea, whose API Forgejo has "
        "too), its url, its api where that is not the kind's own place, its ca_file, and credentials, a secret "
        'reference (`{"source": "vault", "key": "git/bot:token"}`) for runs that name a repository as org/repo: the '
        "first of the hosts is meant by that",
    )
    git_author: Annotated[str, Field(pattern=f"^{AUTHOR}$")] = Field(
        "Taskyard <taskyard@localhost>",
        description="Who makes the commit of what an agent has left uncommitted, as Name <address>",
    )
    secret_file_roots: list[Path] = Field(
        default_factory=lambda: [Path("/run/secrets")],
        description="Directories below which secrets of source 'file' may lie; secrets/ below home always may",
    )
    secret_env_names: list[str] = Field(
        default_factory=lambda: ["*"],
        description="Glob patterns of environment variables that secrets of source 'env' may name; "
        "TASKYARD_*, ANTHROPIC_* and VAULT_* never may",
    )
    vault_address: str | None = Field(
        None,
        validation_alias=AliasChoices("TASKYARD_VAULT_ADDRESS", "VAULT_ADDR"),
        description="URL of the Vault or OpenBao that secrets of source 'vault' are read from; default: there is none",
    )
    vault_namespace: str | None = Field(
        None,
        validation_alias=AliasChoices("TASKYARD_VAULT_NAMESPACE", "VAULT_NAMESPACE"),
        description="Namespace in Vault",
    )
    vault_ca_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("TASKYARD_VAULT_CA_FILE", "VAULT_CACERT"),
        description="PEM file of the authorities that Vault's certificate is checked with; default: this host's own",
    )
    vault_token: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("TASKYARD_VAULT_TOKEN", "VAULT_TOKEN"),
        description="Token for Vault, which has to be renewed elsewhere. Not set: login by AppRole",
    )
    vault_role_id: str | None = Field(None, description="Role id of the AppRole login at Vault")
    vault_secret_id: SecretStr | None = Field(None, description="Secret id of the AppRole login at Vault")
    vault_approle_mount: str = Field("approle", description="Where in Vault the AppRole login is mounted")
    vault_mount: str = Field(
        "secret",
        validation_alias=AliasChoices("TASKYARD_VAULT_MOUNT", "VAULT_MOUNT"),
        description="Where in Vault the key-value store is mounted",
    )
    vault_kv_version: Literal["auto", "1", "2"] = Field(
        "auto", description="Version of the key-value store; auto asks the mount"
    )
    vault_paths: list[str] = Field(
        default_factory=lambda: ["*"],
        description="Glob patterns of paths below the mount that secrets of source 'vault' may name",
    )
    log_limit: str = Field(
        "1G", description="Output of one run that its log takes; an agent that writes more is stopped"
    )
    egress_allowed_hosts: list[str] = Field(
        default_factory=lambda: ["registries"],
        description="Hosts that every guest with network mode outbound may reach beside those of its task: names, "
        "*.suffix, name:port; and the word registries for the package registries that this host's own npm, pip and "
        "apt are set up with",
    )
    egress_denied_hosts: list[str] = Field(
        [], description="Hosts that no guest reaches, whatever its task says; written as the allowed ones are"
    )
    egress_private_networks: list[IPvAnyNetwork] = Field(
        [],
        description="Networks (CIDR) that are not public and that guests may reach all the same at hosts which a rule "
        "names, such as a company's own mirrors; not the names that network mode full lets through",
    )
    egress_byte_limit: str = Field(
        "100G", description="What one machine may send and receive through the egress proxy, together"
    )
    preserve_for: str = Field("24h", description="How long a preserved machine is kept before it is torn down")

    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("TASKYARD_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Key of the model provider; it never enters a machine. Not set: the scripted model answers",
    )
    anthropic_base_url: str = Field(
        "https://api.anthropic.com",
        validation_alias=AliasChoices("TASKYARD_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
        description="Base URL of the model API behind the gateway",
    )
    price_table: Path | None = Field(
        None,
        description="YAML file with the prices of the models' tokens, by which budgets are kept; default: built in",
    )
    scenario: Path | None = Field(
        None, description="Scenario file (or directory of them) of the scripted model; default: the built-in ones"
    )

    @field_validator("sandbox_domain")
    @classmethod
    def _domain(cls, value: str | None) -> str | None:
        if not value:
            return None
        name = value.lower().removeprefix("*.").strip(".")
        if len(name) > _DOMAIN_CHARS or not _DOMAIN.fullmatch(name):
            raise ValueError("must be a host name without a port, such as sandboxes.example.org")
        return name

    @field_validator("preserve_for")
    @classmethod
    def _duration(cls, value: str) -> str:
        parse_duration(value)
        return value

    @field_validator("log_limit", "snapshot_limit", "mirror_limit", "memory_reserve", "egress_byte_limit")
    @classmethod
    def _size(cls, value: str) -> str:
        parse_size(value)
        return value

    @field_validator("host_listen", "host_address")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if not value:
            return None
        try:
            parts = urlsplit(f"//{value}")
            whole = parts.hostname and parts.port and parts.netloc == value and "@" not in value
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("must be host:port, such as 10.0.0.7:8124 or [::]:8124")
        return value

    @field_validator("api_keys")
    @classmethod
    def _all_long_enough(cls, value: list[SecretStr]) -> list[SecretStr]:
        if any(len(key.get_secret_value()) < _KEY_CHARS for key in value):
            raise ValueError(f"must have at least {_KEY_CHARS} characters each")
        return value

    @field_validator("host_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _KEY_CHARS:
            raise ValueError(f"must have at least {_KEY_CHARS} characters")
        return value

    @field_validator("vault_address")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError("must be a URL that begins with http:// or https://")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("must be a URL without user, query and fragment")
        return value

    @field_validator("s3_public_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        if not value:
            return None
        try:
            parts = urlsplit(value.rstrip("/"))
            whole = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            whole = False
        if not whole or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
            # A signature holds the path: nothing may stand before the bucket's name.
            raise ValueError("must be http:// or https:// and a host, with a port or without, and nothing behind it")
        return value.rstrip("/")

    @field_validator("home", "image_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # The processes of a stack run in directories of their own.
        return value and value.expanduser().absolute()

    def make_home(self) -> None:
        """Make the home directory, for its owner alone, also one that was made for others to read.

        Raises HostNotReady when it cannot be.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self.home.stat()
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & _OTHERS:
                self.home.chmod(0o700)
        except OSError as error:
            raise HostNotReady(
                f"The directory {self.home} cannot be this user's own ({error.strerror}); "
                "set TASKYARD_HOME to a directory of yours"
            ) from error

    # Paths below home that more than one module needs. What a module keeps there for itself alone, it names itself.

    @property
    def images(self) -> Path:
        return self.image_dir or self.home / "images"

    @property
    def machines(self) -> Path:
        return self.home / "machines"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def mirrors(self) -> Path:
        return self.home / "mirrors"

    @property
    def staging(self) -> Path:
        return self.home / "staging"

    @property
    def gateway(self) -> Path:
        return self.home / "gateway"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @cached_property
    def sockets(self) -> Path:
        """Directory of unix sockets; outside home when home's path is too long for a socket address."""
        inside = self.home / "run"
        if len(os.fsencode(inside)) <= _SOCKET_DIR_MAX:
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"taskyard-{os.getuid()}-{digest}"

    # Addresses in force.

    @property
    def embedded_temporal(self) -> bool:
        return self.temporal_address is None

    @property
    def embedded_bucket(self) -> bool:
        return self.s3_endpoint is None

    @property
    def temporal_target(self) -> str:
        return self.temporal_address or f"127.0.0.1:{self.temporal_port}"

    @property
    def s3_target(self) -> str:
        return self.s3_endpoint or f"127.0.0.1:{self.s3_port}"

    @property
    def model_is_scripted(self) -> bool:
        return self.anthropic_api_key is None

    def s3_credentials(self) -> tuple[str, str]:
        """Access key and secret key: the ones set, else the embedded server's own, made at first use.

        Raises HostNotReady when an S3 service is set without its keys.
        """
        if self.s3_access_key and self.s3_secret_key:
            return self.s3_access_key, self.s3_secret_key.get_secret_value()
        if not self.embedded_bucket:
            raise HostNotReady(
                "TASKYARD_S3_ENDPOINT is set without keys; set TASKYARD_S3_ACCESS_KEY and TASKYARD_S3_SECRET_KEY too"
            )
        return self._embedded_credentials()

    def service_key(self) -> bytes:
        """Key of the tokens for services of VM hosts: the one set, else this home's own, made at first use.

        Raises HostNotReady when it cannot be read or made.
        """
        if self.host_key is not None:
            return self.host_key.get_secret_value().encode()
        return self._own_key("host.key")

    def client_keys(self) -> list[bytes]:
        """Keys of clients: those set, else this home's own, made at first use.

        Raises HostNotReady when it cannot be read or made.
        """
        return [key.get_secret_value().encode() for key in self.api_keys] or [self._own_key("access.key")]

    def _own_key(self, name: str) -> bytes:
        path = self.home / name
        self.make_home()
        try:
            if not path.exists():
                write_once(path, secrets.token_urlsafe(_KEY_CHARS))
            key = path.read_bytes().strip()
        except OSError as error:
            raise HostNotReady(f"The key {path} cannot be read or made ({error.strerror})") from error
        if len(key) < _KEY_CHARS:
            raise HostNotReady(f"The key {path} is not whole; remove the file, and start server and worker anew")
        return key

    def _embedded_credentials(self) -> tuple[str, str]:
        path = self.home / "credentials.json"
        self.make_home()
        made = {"access_key": "taskyard-" + secrets.token_hex(6), "secret_key": secrets.token_urlsafe(30)}
        if not path.exists():
            # Of two processes that start at once, both read the same keys.
            write_once(path, json.dumps(made))
        stored = json.loads(path.read_text())
        return stored["access_key"], stored["secret_key"]
