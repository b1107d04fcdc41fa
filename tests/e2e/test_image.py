"""The guest image as it is: what lies in it, what a guest of it can do, and that a build that fails leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from foundation.errors import ImageBuildFailed, ImageNotFound
from foundation.settings import Settings
from guest.contract import IDENTITY_PORT
from machines.identity import CLIENT_KEY, KNOWN_HOSTS, identity_message, make_keys
from machines.images.mirror import guest_lines, mirror_lines
from machines.images.profile import load_profile
from machines.images.store import Image, build_image, find_image, list_images

GIB = 2**30
DISK = 9 * GIB
MACHINE = "vm-00000000000000f1"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def image() -> Image:
    return find_image(Settings(), "agentic-dev")


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


# What lies in it.


def in_image(image: Image, request: str) -> str:
    """What debugfs says about the image's file system, without mounting or starting anything."""
    command = ["debugfs", "-R", request, str(image.base)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr.partition("\n")[2]


def test_image_is_small_enough_and_read_only(image: Image) -> None:
    assert image.size_bytes <= 1.5 * GIB
    assert sum(path.stat().st_blocks * 512 for path in image.directory.iterdir()) <= image.size_bytes + 2**20
    assert {path.stat().st_mode & 0o777 for path in image.directory.iterdir()} == {0o444}


def test_image_holds_nothing_that_identifies_a_machine(image: Image) -> None:
    assert "ssh_host" not in in_image(image, "ls -p /etc/ssh")
    assert "sshd_config" in in_image(image, "ls -p /etc/ssh")
    assert "Size: 0" in in_image(image, "stat /etc/machine-id")
    for link in ("hostname", "hosts"):
        assert f'Fast link dest: "/run/{link}"' in in_image(image, f"stat /etc/{link}")
    for absent in ("/var/lib/systemd/random-seed", "/var/lib/dbus/machine-id"):
        assert "File not found" in in_image(image, f"stat {absent}")
    for keys in ("/root/.ssh", "/home/agent/.ssh", "/run/sshd"):
        assert "authorized_keys" not in in_image(image, f"ls -p {keys}")


def test_image_holds_the_mirrors_that_it_is_made_from_and_nothing_else_of_the_build_machines_apt(image: Image) -> None:
    assert not {"99build", "99mmdebstrap"} & set(in_image(image, "ls -p /etc/apt/apt.conf.d").split("/"))
    sources = in_image(image, "cat /etc/apt/sources.list").splitlines()
    assert sources == guest_lines(mirror_lines(Settings(), load_profile(image.profile).release))
    # Fetched when they are asked for; until then they would only be old.
    assert "Packages" not in in_image(image, "ls -p /var/lib/apt/lists")


# What a guest of it can do.


class Guest:
    """A guest of the image, started by hand with what the image itself says."""

    def __init__(self, image: Image, directory: Path) -> None:
        self._directory = directory
        make_keys(directory, MACHINE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        overlay, self._identity = directory / "overlay.qcow2", directory / "identity"
        backing = ["-b", str(image.base), "-F", "raw", str(overlay), str(DISK)]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing], check=True)
        command = ["qemu-system-x86_64", "-name", MACHINE, "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1G"]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.command_line]
        command += ["-drive", f"if=virtio,file={overlay},format=qcow2,cache=unsafe"]
        command += ["-nic", f"user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        command += ["-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=identity,name={IDENTITY_PORT}"]
        command += ["-chardev", f"socket,id=identity,path={self._identity},server=on,wait=off"]
        command += ["-serial", f"file:{directory / 'console'}"]
        self.process = subprocess.Popen(command)
        until(self._identity.exists, 30)

    def identify(self, *messages: bytes) -> list[str]:
        """Send messages to the waiting guest; its answer to each."""
        answers = []
        with socket.socket(socket.AF_UNIX) as port:
            port.settimeout(200)
            port.connect(str(self._identity))
            for message in messages:
                port.sendall(message)
                answers.append(port.makefile("r").readline().strip())
        return answers

    def identity(self) -> bytes:
        return identity_message(self._directory, MACHINE, DISK)

    def says(self, command: str, user: str = "root") -> str:
        known = ["-o", f"UserKnownHostsFile={self._directory / KNOWN_HOSTS}", "-o", f"HostKeyAlias={MACHINE}"]
        options = [*known, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-i", self._directory / CLIENT_KEY]
        ssh = ["ssh", *options, "-p", str(self._port), f"{user}@127.0.0.1", command]
        return subprocess.run(ssh, check=True, capture_output=True, text=True, timeout=200).stdout.strip()


@pytest.fixture(scope="module")
def guest(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    started = Guest(image, tmp_path_factory.mktemp("guest"))
    try:
        answers = started.identify(b"time=soon\0", started.identity())
        assert answers[0].startswith("error no time: ")
        assert answers[1] == "ready"
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_guest_takes_its_identity_and_grows_into_its_disk(guest: Guest) -> None:
    assert guest.says("hostname; cat /etc/hostname").split() == [MACHINE, MACHINE]
    assert len(guest.says("cat /etc/machine-id")) == 32
    # It is in memory: a disk that is copied carries none.
    assert guest.says("mount --bind / /mnt && wc -c </mnt/etc/machine-id && umount /mnt") == "0"
    assert abs(float(guest.says("date +%s")) - time.time()) < 30
    # It answers before it has grown.
    until(lambda: 0.9 * DISK < int(guest.says("df --output=size -B1 / | tail -1")) <= DISK, 60)
    assert guest.says("ls /run/taskyard/identity 2>&1 || true").endswith("No such file or directory")


def test_guest_comes_up_whole(guest: Guest) -> None:
    assert guest.says("systemctl --failed --no-legend") == ""
    assert guest.says("systemctl is-active ssh taskyard-network").split() == ["active", "active"]


def test_agent_is_an_ordinary_user_who_may_use_sudo(guest: Guest) -> None:
    assert guest.says("id -u; id -gn; sudo id -u; stat -c %U /workspace", "agent").split() == [
        "1000",
        "agent",
        "0",
        "agent",
    ]


def test_guest_has_the_versions_that_the_image_names(image: Image, guest: Guest) -> None:
    assert guest.says("claude --version", "agent").split()[0] == image.versions["claude-code"]
    assert guest.says("node --version", "agent") == f"v{image.versions['node']}"
    packages = dict(line.split() for line in guest.says("dpkg-query -W -f '${Package} ${Version}\n'").splitlines())
    assert packages == {
        name: version for name, version in image.versions.items() if name not in {"claude-code", "node"}
    }


def test_guest_has_the_tools_of_the_profile(guest: Guest) -> None:
    guest.says("git --version && rg --version && pytest-3 --version && npm --version", "agent")
    guest.says("command -v make && command -v pip3 && command -v npx && command -v jq", "agent")
    assert guest.says("cd /tmp && echo 'int main(){return 7;}' >a.c && gcc a.c && ./a.out; echo $?", "agent") == "7"
    assert guest.says("curl --version | grep -c https", "agent") != "0"
    assert int(guest.says("wc -l </etc/ssl/certs/ca-certificates.crt", "agent")) > 1000


# A build that fails leaves nothing.


def builder_processes(home: Path) -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if str(home) in " ".join(process.info["cmdline"] or [])]


def unfinished(settings: Settings) -> list[Path]:
    return list(settings.images.glob(".build-*"))


def start_build(settings: Settings) -> subprocess.Popen[str]:
    """A build of its own home, at the point where it fetches packages."""
    environment = {**os.environ, "TASKYARD_HOME": str(settings.home), "TASKYARD_IMAGE_DIR": str(settings.images)}
    command = [sys.executable, "-m", "cli", "image", "build", "--profile", "basic"]
    build = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert build.stderr
    for line in build.stderr:
        if "fetching" in line and "packages" in line:
            return build
    pytest.fail(f"the build ended early with {build.wait()}")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, image_dir=tmp_path / "images")


def test_stopped_build_leaves_nothing(settings: Settings) -> None:
    build = start_build(settings)
    build.send_signal(signal.SIGINT)
    _, told = build.communicate(timeout=60)
    assert build.returncode == 130
    assert "nothing of the unfinished image is left" in told
    assert (unfinished(settings), list_images(settings), builder_processes(settings.home)) == ([], [], [])


def test_killed_build_ends_and_is_swept_by_the_next(settings: Settings) -> None:
    build = start_build(settings)
    build.kill()
    build.communicate()
    until(lambda: not builder_processes(settings.home), 60)
    assert list_images(settings) == []
    left = unfinished(settings)
    assert len(left) == 1
    following = start_build(settings)
    assert not left[0].exists()
    following.terminate()
    following.communicate(timeout=60)
    assert following.returncode == 130
    assert (unfinished(settings), builder_processes(settings.home)) == ([], [])


def test_unreachable_mirror_ends_the_build_with_the_log(settings: Settings) -> None:
    unreachable = settings.model_copy(update={"image_mirror": "http://127.0.0.1:9/debian"})
    with pytest.raises(ImageBuildFailed, match=r"Debian mirror.*whole log is in") as caught:
        build_image(unreachable, "basic", lambda _: None)
    assert "127.0.0.1:9" in caught.value.message
    assert Path(caught.value.details["log"]).is_file()
    assert unfinished(settings) == []
    with pytest.raises(ImageNotFound):
        find_image(settings, "basic")
