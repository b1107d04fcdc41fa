"""Where packages come from: the host's own Debian sources, or the mirror that is set."""

from __future__ import annotations

from pathlib import Path

from foundation.settings import Settings
from machines.images.mirror import guest_lines, host_lines, mirror_lines

TARGETS = """\
Debian|bookworm|main|http://mirror.invalid/debian/
Debian|bookworm|contrib|http://mirror.invalid/debian/
Debian|bookworm-updates|main|http://mirror.invalid/debian/
Debian|bookworm-security|main|http://mirror.invalid/debian-security/
Debian|bookworm-backports|main|http://mirror.invalid/debian/
Tools Inc|bookworm|main|https://tools.invalid/apt/
Debian|bookworm|main|http://mirror.invalid/debian/
"""


def test_host_sources_are_debians_own_suites_of_the_release() -> None:
    assert host_lines(TARGETS, "bookworm") == [
        "deb http://mirror.invalid/debian/ bookworm main",
        "deb http://mirror.invalid/debian/ bookworm-updates main",
        "deb http://mirror.invalid/debian-security/ bookworm-security main",
    ]


def test_sources_count_before_the_host_has_fetched_their_lists() -> None:
    assert host_lines("|bookworm|main|http://mirror.invalid/debian/", "bookworm") == [
        "deb http://mirror.invalid/debian/ bookworm main"
    ]


def test_host_of_another_release_has_no_sources() -> None:
    assert host_lines(TARGETS, "trixie") == []
    assert host_lines("Debian|bookworm-security|main|http://mirror.invalid/debian-security/", "bookworm") == []


def test_set_mirror_comes_with_the_security_suite_beside_it(tmp_path: Path) -> None:
    assert mirror_lines(Settings(home=tmp_path, image_mirror="http://other.invalid/debian/"), "bookworm") == [
        "deb http://other.invalid/debian bookworm main",
        "deb http://other.invalid/debian bookworm-updates main",
        "deb http://other.invalid/debian-security bookworm-security main",
    ]


def test_set_mirror_of_another_layout_is_taken_alone(tmp_path: Path) -> None:
    assert mirror_lines(Settings(home=tmp_path, image_mirror="http://other.invalid/snapshot"), "bookworm") == [
        "deb http://other.invalid/snapshot bookworm main",
        "deb http://other.invalid/snapshot bookworm-updates main",
    ]


def test_a_guest_has_the_sources_of_servers_and_nobodys_credentials() -> None:
    lines = [
        "deb http://mirror.invalid/debian bookworm main",
        "deb https://mirror.invalid:8443/debian bookworm main",
        "deb file:/srv/debian bookworm main",
        "deb https://user:word@mirror.invalid/debian bookworm main",
        "deb cdrom:[Debian]/ bookworm main",
    ]
    assert guest_lines(lines) == lines[:2]
