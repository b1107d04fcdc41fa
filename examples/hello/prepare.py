"""The repository of the example: cachetools as released, with one fault of ours put in, in a bare git repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import HostNotReady
from foundation.settings import Settings

PACKAGE = "cachetools"
VERSION = "5.5.2"
SHA256 = "1a661caa9175d26759571b2e19580f9d6393969e5dfca11fdb1f947a23e640d4"
BRANCH = "main"
TEST_COMMAND = "PYTHONPATH=src python3 -m unittest"

FAULTY_FILE = "src/cachetools/__init__.py"
FAULT = (
    "TTLCache.__contains__ compares the expiry time with '<=' where it must be '<', so that an item is still found at "
    "the moment its time is up"
)
_SOUND = b"            return self.timer() < link.expires\n"
_FAULTY = b"            return self.timer() <= link.expires\n"
# A fixed committer and time give the same commit ids on every host.
_COMMITTER = b"committer Taskyard example <example@localhost> %d +0000\n"
_IMPORTED_AT = 1_740_000_000


@dataclass(frozen=True)
class PreparedRepository:
    """A bare repository whose branch ``branch`` stands at ``base_commit``; ``test_command`` fails there."""

    path: Path
    base_commit: str
    branch: str = BRANCH
    test_command: str = TEST_COMMAND
    faulty_file: str = FAULTY_FILE
    fault: str = FAULT


def prepare(
    settings: Settings, report: Callable[[str], None] = lambda _: None, directory: Path | None = None
) -> PreparedRepository:
    """Make the repository below ``directory`` (default: ``examples/`` of the home), or find it made before.

    The package's source distribution is fetched once and kept below the home, so that later calls need no network.
    Raises HostNotReady when it cannot be fetched or is not the one that was pinned.
    """
    stream = _history(_source(settings, report))
    # Named after its content: a changed example never meets the repository of an older one.
    place = (directory or settings.home / "examples") / f"hello-{hashlib.sha256(stream).hexdigest()[:12]}"
    path = place / f"{PACKAGE}.git"
    if not path.is_dir():
        report(f"Making a git repository of {PACKAGE} {VERSION} with one fault in it")
        place.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=place))
        try:
            _git("init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(draft / "git"))
            _git("-C", str(draft / "git"), "fast-import", "--quiet", data=stream)
            (draft / "git").rename(path)
        finally:
            shutil.rmtree(draft)
    return PreparedRepository(path, _git("-C", str(path), "rev-parse", f"refs/heads/{BRANCH}").decode().strip())


def _source(settings: Settings, report: Callable[[str], None]) -> Path:
    """The source distribution, from the cache below the home or through pip."""
    cached = settings.home / "cache" / f"{PACKAGE}-{VERSION}.tar.gz"
    if cached.is_file() and _sha256(cached) == SHA256:
        return cached
    report(f"Fetching the source of {PACKAGE} {VERSION} through pip")
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cached.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", PACKAGE, "--dest", directory, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        fetched = Path(directory) / cached.name
        if done.returncode or not fetched.is_file():
            raise HostNotReady(
                f"pip could not fetch {PACKAGE} {VERSION}; the example needs it once: {done.stderr.strip()[-500:]}"
            )
        if _sha256(fetched) != SHA256:
            raise HostNotReady(
                f"pip fetched a {fetched.name} that is not the one pinned by its SHA-256; nothing is used."
            )
        fetched.replace(cached)
    return cached


def _history(source: Path) -> bytes:
    """Two commits as git fast-import reads them: the release as it is, then the fault."""
    files = dict(_files(source))
    faulty = files[FAULTY_FILE].replace(_SOUND, _FAULTY)
    if faulty.count(_FAULTY) != 1:
        raise HostNotReady(f"{FAULTY_FILE} of {PACKAGE} {VERSION} does not hold the line that the example changes.")
    files[".gitignore"] = b"__pycache__/\n*.egg-info/\n"
    return b"".join(
        [
            *_commit(0, f"Import {PACKAGE} {VERSION}", files),
            *_commit(3600, "Keep items through the whole of their time to live", {FAULTY_FILE: faulty}),
        ]
    )


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Paths below the distribution's top directory and contents, without what packaging added."""
    with tarfile.open(source) as archive:
        for member in archive:
            path = member.name.partition("/")[2]
            content = archive.extractfile(member) if member.isfile() else None
            if content and path != "PKG-INFO" and ".egg-info/" not in path:
                yield path, content.read()


def _commit(after: int, message: str, files: dict[str, bytes]) -> Iterator[bytes]:
    yield f"commit refs/heads/{BRANCH}\n".encode() + _COMMITTER % (_IMPORTED_AT + after)
    yield _data(message.encode())
    for path, content in sorted(files.items()):
        yield f"M 100644 inline {path}\n".encode() + _data(content)
    yield b"\n"


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _git(*arguments: str, data: bytes = b"") -> bytes:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], input=data, env=environment, check=False, capture_output=True)
    if done.returncode:
        raise HostNotReady(f"git could not make the example's repository: {done.stderr.decode().strip()}")
    return done.stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
