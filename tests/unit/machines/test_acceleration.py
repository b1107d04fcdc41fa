"""The choice of acceleration: by booting, said once, remembered until something changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foundation.errors import HostNotReady
from foundation.settings import Settings
from machines.hypervisor import acceleration
from machines.hypervisor.acceleration import seconds_to_start_sector, usable_acceleration


def test_emulation_starts_a_boot_sector() -> None:
    taken = seconds_to_start_sector("tcg")
    assert taken is not None
    assert taken < acceleration.PROBE_LIMIT_SECONDS


def test_a_host_without_kvm_emulates_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "KVM_DEVICE", tmp_path / "kvm")
    lines: list[str] = []
    settings = Settings(home=tmp_path)
    assert [usable_acceleration(settings, lines.append) for _ in range(3)] == ["tcg"] * 3
    assert len(lines) == 1
    assert "does not exist" in lines[0]
    with pytest.raises(HostNotReady, match="set it to auto or tcg"):
        usable_acceleration(Settings(home=tmp_path, acceleration="kvm"), lines.append)


@pytest.mark.parametrize(
    ("sector", "kernel", "expected", "said"),
    [
        (0.1, 1.0, "kvm", "run with KVM"),
        (None, 1.0, "tcg", "no guest starts"),
        (5.0, 1.0, "tcg", "crawl"),
        (0.1, None, "tcg", "no kernel starts"),
    ],
)
def test_kvm_is_taken_only_when_its_guests_start_and_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sector: float | None,
    kernel: float | None,
    expected: str,
    said: str,
) -> None:
    (tmp_path / "images" / "digest").mkdir(parents=True)
    (tmp_path / "images" / "digest" / "kernel").touch()
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(acceleration, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(acceleration, "seconds_to_start_sector", lambda kind: 0.15 if kind == "tcg" else sector)
    monkeypatch.setattr(acceleration, "seconds_to_start_kernel", lambda *_: kernel)
    lines: list[str] = []
    assert usable_acceleration(Settings(home=tmp_path), lines.append) == expected
    assert len(lines) == 1
    assert said in lines[0]


def test_a_new_boot_or_kernel_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(acceleration, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(acceleration, "seconds_to_start_sector", lambda _: 0.1)
    monkeypatch.setattr(acceleration, "seconds_to_start_kernel", lambda *_: None)
    settings, lines = Settings(home=tmp_path), []
    assert usable_acceleration(settings, lines.append) == "kvm"
    (tmp_path / "images" / "digest").mkdir(parents=True)
    (tmp_path / "images" / "digest" / "kernel").touch()
    assert usable_acceleration(settings, lines.append) == "tcg"
    remembered = json.loads((tmp_path / "acceleration.json").read_text())
    (tmp_path / "acceleration.json").write_text(json.dumps({**remembered, "key": "another boot"}))
    assert usable_acceleration(settings, lines.append) == "tcg"
    assert len(lines) == 3


def test_the_setting_overrides_the_probe(tmp_path: Path) -> None:
    lines: list[str] = []
    assert usable_acceleration(Settings(home=tmp_path, acceleration="tcg"), lines.append) == "tcg"
    assert lines == []
