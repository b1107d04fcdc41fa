"""Workspace disks, and what a guest with root can do to the one that the host reads back.

Above 400 lines: disks are made and forged byte by byte, with means that no other test needs.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import MachineError
from machines.disks.confinement import ConfinedTimeout, Confinement
from machines.disks.ext4 import Ext4
from machines.disks.workspace import Extraction, Limits, WorkspaceDisk, build_workspace
from tests.workspace_reading import extract_workspace

SIZE = 64 * 2**20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "src" / "app.py").write_text("print('hi')\n")
    (root / "src" / "deep" / "data.bin").write_bytes(bytes(range(256)) * 2000)
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "empty").mkdir()
    (root / "none").touch()
    with (root / "hole").open("wb") as file:
        file.truncate(10_000)
    (root / "short").symlink_to("/etc/passwd")
    (root / "long").symlink_to("../" * 60 + "etc/passwd")
    (root / "n\newline \udce4").write_text("odd name")
    return root


@pytest.fixture
def image(tree: Path, tmp_path: Path) -> Path:
    path = tmp_path / "workspace.raw"
    build_workspace(tree, path, SIZE)
    return path


def debugfs(image: Path, *commands: str) -> str:
    script = "".join(f"{command}\n" for command in commands)
    done = subprocess.run(["debugfs", "-w", "-f", "-", image], input=script.encode(), capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def shape(root: Path) -> dict[str, object]:
    """Everything below a directory: content of files with their x bit, targets of links."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                found[str(path.relative_to(root))] = path.readlink()
            elif stat.S_ISREG(status.st_mode):
                found[str(path.relative_to(root))] = (path.read_bytes(), bool(status.st_mode & stat.S_IXUSR))
            else:
                found[str(path.relative_to(root))] = stat.S_IFMT(status.st_mode)
    return found


def test_what_went_in_comes_out(tree: Path, image: Path, tmp_path: Path) -> None:
    result = extract_workspace(image, tmp_path / "out", dirty=False)

    assert shape(tmp_path / "out") == shape(tree)
    assert (result.files, result.left_out, result.repaired) == (6, {}, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree", "workspace.raw"]


def test_the_image_is_the_agents_and_thin(tree: Path, image: Path) -> None:
    rows = [line.split("/") for line in debugfs(image, "ls -p /").splitlines()]
    owners = {f"{row[3]}:{row[4]}" for row in rows if len(row) > 6}

    assert owners == {"1000:1000"}
    assert "lost+found" not in debugfs(image, "ls -p /")
    assert image.stat().st_size == SIZE
    assert image.stat().st_blocks * 512 < SIZE / 4
    assert tree.stat().st_uid == os.getuid()
    assert "Reserved block count:     0" in debugfs(image, "stats -h")


def test_a_tree_that_does_not_fit_says_what_to_do(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(os.urandom(20 * 2**20))

    with pytest.raises(MachineError, match=r"vm\.disk"):
        build_workspace(tree, tmp_path / "small.raw", 16 * 2**20)

    assert not list(tmp_path.glob("*small*"))


def test_many_files_are_quick(tmp_path: Path) -> None:
    tree = tmp_path / "many"
    for directory in range(50):
        (tree / str(directory)).mkdir(parents=True)
        for number in range(100):
            (tree / str(directory) / str(number)).write_bytes(b"x" * 1000)
    begun = time.monotonic()

    build_workspace(tree, tmp_path / "image", 4 * 2**30)
    result = extract_workspace(tmp_path / "image", tmp_path / "out", dirty=False)

    assert result.files == 5000
    assert time.monotonic() - begun < 30


def test_a_dirty_image_is_mended_in_a_copy(image: Path, tree: Path, tmp_path: Path) -> None:
    debugfs(image, "ssv free_blocks_count 17", "ssv state 0", "sif /run links_count 7")
    before = image.read_bytes()

    result = extract_workspace(image, tmp_path / "out", dirty=True)

    assert result.repaired
    assert image.read_bytes() == before
    assert shape(tmp_path / "out") == shape(tree)


def test_an_unclean_image_is_noticed_though_nobody_said_so(image: Path, tmp_path: Path) -> None:
    debugfs(image, "sif /run links_count 7")

    assert extract_workspace(image, tmp_path / "out", dirty=False).repaired


@pytest.mark.parametrize("content", [b"", b"\0" * SIZE, os.urandom(2**20)], ids=["nothing", "zeros", "noise"])
def test_what_is_no_filesystem_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)

    with pytest.raises(MachineError):
        extract_workspace(tmp_path / "image", tmp_path / "out", dirty=True)


def test_a_damaged_filesystem_gives_what_is_left_or_an_error(image: Path, tmp_path: Path) -> None:
    with image.open("r+b") as file:
        file.seek(64 * 1024)
        file.write(os.urandom(512 * 1024))

    with suppress(MachineError):
        extract_workspace(image, tmp_path / "out", dirty=True)

    assert not {path.name for path in tmp_path.iterdir()} - {"out", "tree", "workspace.raw"}


def test_skipped_paths_are_not_read(image: Path, tmp_path: Path) -> None:
    result = extract_workspace(image, tmp_path / "out", dirty=False, skip=lambda path: path == "src")

    assert not (tmp_path / "out" / "src").exists()
    assert result.left_out == {}


def test_limits_hold_and_what_they_cost_is_told(image: Path, tmp_path: Path) -> None:
    debugfs(image, "write /dev/null sparse", "sif /sparse size 1099511627776", "sif /sparse size_high 256")
    limits = Limits(file_bytes=400_000, total_bytes=100, entries=1000)

    result = extract_workspace(image, tmp_path / "out", dirty=False, limits=limits)

    assert "larger than" in result.left_out["sparse"]
    assert "larger than" in result.left_out["src/deep/data.bin"]
    assert (tmp_path / "out" / "src" / "app.py").exists()
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.name in result.left_out) == 0
    assert result.total_bytes <= 100


def test_a_total_limit_leaves_out_what_comes_later(image: Path, tmp_path: Path) -> None:
    result = extract_workspace(image, tmp_path / "out", dirty=False, limits=Limits(total_bytes=20))

    assert "beyond" in result.left_out["src/app.py"]
    assert (tmp_path / "out" / "run").exists()


def test_an_entry_limit_ends_the_walk(image: Path, tmp_path: Path) -> None:
    result = extract_workspace(image, tmp_path / "out", dirty=False, limits=Limits(entries=3))

    assert len(shape(tmp_path / "out")) == 3
    assert "more than 3 entries" in result.unlisted[""]
    assert not result.whole_root
    assert "more than 3 entries" in (result.reason("src/deep/data.bin") or "")


def test_device_nodes_pipes_and_sockets_are_left_out(image: Path, tmp_path: Path) -> None:
    debugfs(image, "mknod disk b 8 0", "mknod tty c 5 0", "mknod pipe p")

    result = extract_workspace(image, tmp_path / "out", dirty=False)

    assert {name: result.left_out[name] for name in ("disk", "tty", "pipe")} == dict.fromkeys(
        ("disk", "tty", "pipe"), "no regular file"
    )
    assert not (tmp_path / "out" / "disk").exists()


def test_hard_links_are_files_of_their_own(tree: Path, tmp_path: Path) -> None:
    (tree / "twin").hardlink_to(tree / "run")
    build_workspace(tree, tmp_path / "image", SIZE)

    extract_workspace(tmp_path / "image", tmp_path / "out", dirty=False)

    assert (tmp_path / "out" / "twin").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "out" / "twin").stat().st_nlink == 1


def test_a_setuid_file_comes_back_without_it(tree: Path, tmp_path: Path) -> None:
    (tree / "run").chmod(0o6777)
    build_workspace(tree, tmp_path / "image", SIZE)

    extract_workspace(tmp_path / "image", tmp_path / "out", dirty=False)

    assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) == 0o755


# Forged directory entries: written into the raw image, with the filesystem's checksums off.


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("untouched")
    return path


def read_unchecked(image: Path, out: Path) -> Extraction:
    """Read an image without a check before."""
    with Ext4(image, time.monotonic() + 60) as filesystem:
        disk = WorkspaceDisk(filesystem, Limits())
        disk.list_entries()
        disk.read(disk.entries, out)
        return disk.result


def forged(tmp_path: Path, changes: dict[bytes, bytes]) -> Path:
    """An image whose names were changed behind the filesystem's back."""
    tree = tmp_path / "forged"
    (tree / "AAAAAAAAAA").mkdir(parents=True)
    (tree / "AAAAAAAAAA" / "inner").write_text("evil")
    (tree / "BBBBBBBBBB").symlink_to(tmp_path)
    (tree / "CCCCCCCCCC").write_text("evil")
    image = tmp_path / "forged.raw"
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", "-d", tree, image, "64M"], check=True, capture_output=True
    )
    data = image.read_bytes()
    for old, new in changes.items():
        assert data.count(old) == 1
        data = data.replace(old, new.ljust(len(old), b"_") if len(new) < len(old) else new[: len(old)])
    image.write_bytes(data)
    return image


@pytest.mark.parametrize("mended", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {b"CCCCCCCCCC": b"../victim"},
        {b"CCCCCCCCCC": b"../../etc/"},
        {b"CCCCCCCCCC": b"/tmp/evil1"},
        {b"CCCCCCCCCC": b"a/b/c/d/ef"},
        {b"CCCCCCCCCC": b"a\0/victim"},
        {b"CCCCCCCCCC": b"x\n/2/04075"},
        {b"AAAAAAAAAA": b"BBBBBBBBBB"},
        {b"CCCCCCCCCC": b"BBBBBBBBBB"},
        {b"AAAAAAAAAA": b"../../../.", b"CCCCCCCCCC": b"..////////"},
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else str(value),
)
def test_forged_names_never_leave_the_directory(
    tmp_path: Path, victim: Path, changes: dict[bytes, bytes], mended: bool
) -> None:
    image = forged(tmp_path, changes)
    outside = sorted(tmp_path.iterdir())
    out = tmp_path / "out"

    if mended:
        assert extract_workspace(image, out, dirty=False).repaired
    else:
        # As when the guest writes between the check and the reading.
        result = read_unchecked(image, out)
        assert result.left_out
        assert result.unlisted or "second entry" in str(result.left_out)

    assert victim.read_text() == "untouched"
    assert sorted(set(tmp_path.iterdir()) - {out}) == outside
    assert not (tmp_path / "inner").exists()
    assert not Path("/tmp/evil1").exists()
    for path in out.rglob("*"):
        assert path.is_symlink() or path.resolve().is_relative_to(out)


def test_a_directory_loop_ends(tmp_path: Path) -> None:
    image = forged(tmp_path, {})
    debugfs(image, "ln / AAAAAAAAAA/up", "ln AAAAAAAAAA AAAAAAAAAA/self")

    result = read_unchecked(image, tmp_path / "out")

    assert set(result.unlisted.values()) == {"a directory linked from two places"}


def test_deep_nesting_is_cut_and_told(tmp_path: Path) -> None:
    tree = tmp_path / "deep"
    tree.mkdir()
    subprocess.run(
        ["bash", "-c", f"cd {tree}; for i in $(seq 45); do mkdir {'d' * 100}; cd {'d' * 100}; done; touch bottom"],
        check=True,
    )
    build_workspace(tree, tmp_path / "image", SIZE)

    result = extract_workspace(tmp_path / "image", tmp_path / "out", dirty=False)

    assert any("path is too long" in reason for reason in result.left_out.values())
    subprocess.run(["rm", "-r", tree], check=True)


def test_confined_programs_see_nothing_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host secret")
    seen = Confinement().run(
        ["sh", "-c", f"cat {tmp_path}/secret /etc/passwd /proc/1/environ; ls / /home /root; env"], check=False
    )

    assert b"secret" not in seen.stdout
    assert b"root:" not in seen.stdout
    assert b"PYTEST" not in seen.stdout
    network = Confinement().run(["sh", "-c", "cat < /dev/tcp/127.0.0.1/22 || exit 7"], check=False)
    assert network.returncode == 7


def test_confined_programs_end_in_time_and_within_their_file_size(tmp_path: Path) -> None:
    with pytest.raises(ConfinedTimeout):
        Confinement(seconds=0.2).run(["sleep", "60"])

    limited = Confinement(writable={"/out": tmp_path}, file_bytes=1000)
    with pytest.raises(MachineError):
        limited.run(["dd", "if=/dev/zero", "of=/out/file", "bs=100", "count=100"])
    assert (tmp_path / "file").stat().st_size <= 1000


# Names that the host reads from a disk are bytes; none of them is anything but the name of its own entry.

NAMES = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.sampled_from(
        [
            b"\ndebugfs: ls -p <12>\n",
            b"debugfs: ls -p <2>",
            b"\n/2/040755/0/0/..//\n",
            b"x//\n/13/100644/0/0/y/5/\n",
            b'Fast link dest: "',
            b"'; rm -rf ~ #",
            b"-f",
            b"<2>",
            b"\xff\xfe",
            b" ",
            b"\x1b[2J",
        ]
    ),
).map(lambda name: name.replace(b"/", b"\n").replace(b"\0", b"\r")[:200])
TREES = st.recursive(
    st.one_of(st.binary(max_size=200), NAMES.map(lambda target: (target,))),
    lambda below: st.dictionaries(NAMES.filter(lambda name: name not in {b".", b".."}), below, max_size=5),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


def grow(tree: dict[bytes, object], root: Path) -> None:
    root.mkdir()
    for name, value in tree.items():
        path = root / os.fsdecode(name)
        if isinstance(value, dict):
            grow(value, path)
        elif isinstance(value, tuple):
            path.symlink_to(os.fsdecode(value[0]))
        else:
            path.write_bytes(value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_hostile_names_and_structures_come_back_as_they_are(tmp_path_factory: pytest.TempPathFactory, tree) -> None:
    root = tmp_path_factory.mktemp("names")
    grow(tree, root / "tree")
    build_workspace(root / "tree", root / "image", 8 * 2**20)

    result = extract_workspace(root / "image", root / "out", dirty=False)

    assert shape(root / "out") == shape(root / "tree")
    assert (result.left_out, result.unlisted, result.repaired) == ({}, {}, False)
    shutil.rmtree(root)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(min_value=0, max_value=2**20 - 1), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=20,
    )
)
def test_an_image_with_any_bytes_forged_is_read_in_bounds(small_image: bytes, tmp_path: Path, edits) -> None:
    forged_image = bytearray(small_image)
    for place, data in edits:
        # Most of them where the filesystem keeps its own tables.
        at = place % (400 * 1024)
        forged_image[at : at + len(data)] = data
    (tmp_path / "image").write_bytes(forged_image)
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    limits = Limits(file_bytes=2**20, total_bytes=2**21, entries=1000, seconds=20)

    with suppress(MachineError), Ext4(tmp_path / "image", time.monotonic() + 20) as filesystem:
        disk = WorkspaceDisk(filesystem, limits)
        disk.list_entries()
        disk.read(disk.entries, out)
        assert disk.result.total_bytes <= limits.total_bytes

    assert {path.name for path in tmp_path.iterdir()} <= {"image", "out", "tree", "workspace.raw"}


@pytest.fixture(scope="module")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("small")
    tree = root / "tree"
    for number in range(20):
        (tree / f"d{number}" / "below").mkdir(parents=True)
        (tree / f"d{number}" / "below" / "file").write_bytes(os.urandom(5000))
    build_workspace(tree, root / "image", 4 * 2**20)
    return (root / "image").read_bytes()


def test_directories_with_an_index_and_files_of_many_extents_come_back(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "wide").mkdir(parents=True)
    for number in range(600):
        (tree / "wide" / f"{number}-{'n' * 60}").touch()
    with (tree / "holes").open("wb") as file:
        for number in range(400):
            file.seek(number * 2 * 4096)
            file.write(b"%04d" % number * 1024)
        file.truncate(900 * 4096 + 5)
    build_workspace(tree, tmp_path / "image", SIZE)
    # An index on the directory, as the kernel makes one.
    subprocess.run(["e2fsck", "-fyD", tmp_path / "image"], check=False, capture_output=True)
    assert "Root node dump" in debugfs(tmp_path / "image", "htree_dump /wide")

    result = extract_workspace(tmp_path / "image", tmp_path / "out", dirty=False, skip=lambda path: path[:4] == "lost")

    assert shape(tmp_path / "out") == shape(tree)
    assert result.left_out == {}
    assert (tmp_path / "out" / "holes").stat().st_blocks * 512 < 500 * 4096


def test_an_entry_whose_name_was_forged_leaves_its_directory_not_read_whole(tmp_path: Path) -> None:
    image = forged(tmp_path, {b"CCCCCCCCCC": b"a/b/c/d/ef"})

    result = extract_workspace(image, tmp_path / "out", dirty=False)

    assert result.repaired
    assert result.reason("CCCCCCCCCC") is not None
