"""Files of a real machine: trees in and out by the command line, whole writes, ranges, a full disk."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundation.errors import ArchiveRefused, FileDenied, FileNotFound, GuestDiskFull, WrongFileType
from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(300)

SANDBOX = str(Path(__file__).parents[3] / ".venv/bin/sandbox")
# Names, modes, links and times of all kinds; a file of 1 GiB that is nearly all hole, and 3 MB that are none.
TREE = r"""
set -e; mkdir -p /var/tmp/odd/sub/empty && cd /var/tmp/odd
printf '#!/bin/sh\n' >sub/run; chmod 750 sub/run; ln sub/run sub/same; ln -s sub/run link; ln -s /etc/passwd absolute
for name in "$(printf 'odd \377\376')" "$(printf 'new\nline')" 'quotes '"'"'"$(id)' -rf .hidden; do
    echo "$name" >"./$name"; done
truncate -s 1G sparse; printf end >>sparse; head -c 3000000 /dev/urandom >random; mkfifo pipe
mkdir closed; echo in >closed/in; chmod 555 closed
touch -d '2001-02-03 04:05:06.123456789 UTC' sub/run sub/empty closed
chown -R agent: .
"""
# What is to be the same: kind, mode, time, length, links and targets, and content by hash; that of the sparse file is
# known, and takes an emulated machine minutes to read.
FACTS = (
    r"find . ! -name pipe ! -path . -printf '%P|%y|%m|%T@|%l\0' | sort -z | sha256sum; "
    r"find . -type f -printf '%P|%n\0' | sort -z | sha256sum; "
    r"find . -type f ! -name sparse -print0 | sort -z | xargs -0 sha256sum --zero | sha256sum"
)
SPARSE = (2**30, b"end")


@pytest.fixture(scope="module")
def odd(entered: Entered) -> Iterator[str]:
    """A tree in the machine."""
    said(entered, TREE)
    yield "/var/tmp/odd"
    said(entered, "rm -rf /var/tmp/odd /var/tmp/again /var/tmp/new")


def said(entered: Entered, shell: str) -> str:
    done = entered.site.client.exec(entered.id, shell=shell, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode(errors="replace")


def copy(entered: Entered, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    server = f"http://127.0.0.1:{entered.site.settings.api_port}"
    given = [word.replace("in:", f"{entered.id}:") for word in words]
    return subprocess.run(
        [SANDBOX, "task", "cp", "--server", server, *given], capture_output=True, timeout=200, check=False, **options
    )


def facts(directory: Path) -> str:
    done = subprocess.run(["bash", "-c", FACTS], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout


@cache
def sparse_digest() -> str:
    digest = hashlib.sha256()
    for _ in range(SPARSE[0] // 2**20):
        digest.update(bytes(2**20))
    digest.update(SPARSE[1])
    return digest.hexdigest()


def test_a_tree_of_everything_is_the_same_after_it_went_out_and_in(entered: Entered, odd: str, tmp_path: Path) -> None:
    there = said(entered, f"cd {odd} && {FACTS}")
    out = copy(entered, f"in:{odd}", str(tmp_path))
    assert (out.returncode, out.stdout) == (0, b""), out.stderr
    assert facts(tmp_path / "odd") == there
    with (tmp_path / "odd/sparse").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sparse_digest()
    assert (tmp_path / "odd/sparse").stat().st_blocks * 512 < 10**6

    back = copy(entered, f"{tmp_path}/odd", "in:/var/tmp/again")
    assert back.returncode == 0, back.stderr
    assert said(entered, f"cd /var/tmp/again && {FACTS}") == there
    assert int(said(entered, "stat -c '%b' /var/tmp/again/sparse")) * 512 < 10**6
    digest = hashlib.sha256()
    for piece in entered.site.client.read_file(entered.id, "/var/tmp/again/sparse"):
        digest.update(piece)
    assert digest.hexdigest() == sparse_digest()
    assert [event for event in entered.events("access") if event["kind"] == "files"]


def test_archives_of_each_form_hold_what_is_there(entered: Entered, tmp_path: Path) -> None:
    client = entered.site.client
    said(entered, "mkdir -p /var/tmp/small/d && echo one >/var/tmp/small/d/one && ln -s d/one /var/tmp/small/l")
    for form in ("tar", "tar.gz", "zip"):
        packed = tmp_path / "archive"
        packed.write_bytes(b"".join(client.download_archive(entered.id, "/var/tmp/small", form)))  # type: ignore[arg-type]
        tool = ["unzip", "-q"] if form == "zip" else ["tar", "-xf"]
        target = tmp_path / f"as-{form}"
        target.mkdir()
        subprocess.run([*tool, str(packed)], cwd=target, check=True)
        assert ((target / "d/one").read_text(), (target / "l").readlink()) == ("one\n", Path("d/one"))
        with packed.open("rb") as file:
            laid = client.upload_archive(entered.id, f"/var/tmp/laid/{form}", file)
        assert laid.files == 2
        assert said(entered, f"cat /var/tmp/laid/{form}/l") == "one\n"
    said(entered, "rm -rf /var/tmp/small /var/tmp/laid")


def test_an_archive_does_not_leave_its_directory(entered: Entered, tmp_path: Path) -> None:
    said(entered, "mkdir -p /var/tmp/cage && ln -s /var/tmp /var/tmp/cage/out && chown -R agent: /var/tmp/cage")
    for name in ("../escaped", "/var/tmp/escaped", "out/escaped"):
        with tarfile.open(tmp_path / "archive", "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        with pytest.raises(ArchiveRefused):
            entered.site.client.upload_archive(entered.id, "/var/tmp/cage", (tmp_path / "archive").read_bytes())
    assert said(entered, "ls -A /var/tmp/cage; ls /var/tmp | grep escaped; rm -r /var/tmp/cage") == "out\n"


def test_a_file_is_read_in_parts_and_by_lines(entered: Entered) -> None:
    client, path = entered.site.client, "/var/tmp/lines"
    text = b"".join(b"line %d\n" % number for number in range(1, 100_001))
    info = client.write_file(entered.id, path, text, mode="640")
    assert (info.size, info.mode, info.owner) == (len(text), "0640", "agent")
    assert b"".join(client.read_file(entered.id, path, first=7, last=20)) == text[7:21]
    assert b"".join(client.read_file(entered.id, path, first_line=99_999, line_count=5)) == b"line 99999\nline 100000\n"
    answer = httpx.get(f"{entered.url}/files/content?path={path}", headers={"Range": "bytes=-5"}, timeout=30)
    assert (answer.status_code, answer.content) == (206, text[-5:])
    assert answer.headers["content-range"] == f"bytes {len(text) - 5}-{len(text) - 1}/{len(text)}"
    answer = httpx.get(f"{entered.url}/files/content?path={path}", headers={"Range": f"bytes={len(text)}-"}, timeout=30)
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(text)}")
    changed = client.change_files(
        entered.id,
        [
            {"operation": "replace", "path": path, "old": "line", "new": "LINE", "most": 3},
            {"operation": "move", "source": path, "destination": "/workspace/moved/lines"},
            {"operation": "set_access", "path": "moved", "mode": "700"},
        ],
    )
    assert changed[0].replaced == 3
    assert [found.path for found in client.search_files(entered.id, "moved/**").files] == ["moved/lines"]
    assert [(found.path, found.mode) for found in client.list_files(entered.id).files if found.path == "moved"] == [
        ("moved", "0700")
    ]
    client.change_files(entered.id, [{"operation": "remove", "path": "moved", "directories": "recursive"}])


def test_what_cannot_be_done_is_told(entered: Entered) -> None:
    client = entered.site.client
    with pytest.raises(FileNotFound):
        list(client.read_file(entered.id, "not-there"))
    with pytest.raises(FileDenied):
        list(client.read_file(entered.id, "/etc/shadow"))
    assert b"root:" in b"".join(client.read_file(entered.id, "/etc/shadow", user="root"))
    for path in ("/dev/zero", "/workspace"):
        with pytest.raises(WrongFileType):
            list(client.read_file(entered.id, path))
    assert b"processor" in b"".join(client.read_file(entered.id, "/proc/cpuinfo"))


def test_a_full_disk_leaves_nothing_half(entered: Entered, tmp_path: Path) -> None:
    said(
        entered,
        "mkdir -p /var/tmp/full && mount -t tmpfs -o size=2m,mode=777 none /var/tmp/full; echo before >/var/tmp/full/a",
    )
    try:
        with pytest.raises(GuestDiskFull):
            entered.site.client.write_file(entered.id, "/var/tmp/full/a", os.urandom(6_000_000), user="root")
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/large").write_bytes(os.urandom(6_000_000))
        done = copy(entered, f"{tmp_path}/tree", "in:/var/tmp/full/tree", "-u", "root")
        assert (done.returncode, b"no room" in done.stderr) == (1, True)
        assert said(entered, "ls -A /var/tmp/full; cat /var/tmp/full/a") == "a\nbefore\n"
    finally:
        said(entered, "umount /var/tmp/full && rmdir /var/tmp/full")


def test_who_reads_meanwhile_sees_the_old_or_the_new_file_whole(entered: Entered) -> None:
    client, path = entered.site.client, "/var/tmp/whole"
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    client.write_file(entered.id, path, contents[0])
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(b"".join(client.read_file(entered.id, path)))

    looking = threading.Thread(target=look)
    looking.start()
    for content in (contents[1], contents[0], contents[1]):
        client.write_file(entered.id, path, content)
    over.set()
    looking.join()
    assert seen <= set(contents)
    said(entered, f"rm {path}")


def test_a_copy_that_is_broken_off_leaves_nothing(entered: Entered, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/large").write_bytes(os.urandom(60_000_000))
    server = f"http://127.0.0.1:{entered.site.settings.api_port}"
    words = [SANDBOX, "task", "cp", "--server", server]
    before = hashlib.sha256(said(entered, "ls -A /var/tmp").encode()).hexdigest()
    copying = subprocess.Popen([*words, f"{tmp_path}/tree", f"{entered.id}:/var/tmp/new"], stderr=subprocess.DEVNULL)
    until(lambda: ".taskyard-" in said(entered, "ls -A /var/tmp"))
    copying.send_signal(signal.SIGINT)
    assert copying.wait(30) == 130
    until(lambda: hashlib.sha256(said(entered, "ls -A /var/tmp").encode()).hexdigest() == before)

    said(entered, "head -c 60000000 /dev/urandom >/var/tmp/large")
    copying = subprocess.Popen(
        [*words, f"{entered.id}:/var/tmp/large", str(tmp_path / "got")], stderr=subprocess.DEVNULL
    )
    until(lambda: list(tmp_path.glob(".taskyard-*")))
    copying.send_signal(signal.SIGINT)
    assert (copying.wait(30), sorted(path.name for path in tmp_path.iterdir())) == (130, ["tree"])
    said(entered, "rm /var/tmp/large")
