"""Durable records: whole after any crash, found by exact name, guarded by locks that end with their holder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from foundation.errors import MachineError, MachineNotFound
from foundation.settings import Settings
from machines.records import MachineRecord, RecordStore

ID = "vm-0123456789abcdef"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def record(machine_id: str = ID, **changes: object) -> MachineRecord:
    fields = {"id": machine_id, "owner_workflow": "w", "owner_run": "r", "cpus": 2, "memory_bytes": 2**30}
    return MachineRecord.model_validate({**fields, "disk_bytes": 2**33, "created_at": NOW, "deadline": NOW, **changes})


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(Settings(home=tmp_path))


def test_a_record_is_read_back_as_written_and_replaced_whole(store: RecordStore) -> None:
    first = store.write(record(ssh_port=1, boot_seconds=1.5))
    assert store.read(ID) == first
    second = store.write(first.model_copy(update={"state": "running"}))
    assert store.read_all() == [second]
    assert [path.name for path in store.directory(ID).iterdir()] == ["machine.json"]


def test_what_an_interrupted_writer_leaves_is_not_taken_for_a_record(store: RecordStore) -> None:
    written = store.write(record())
    (store.directory(ID) / ".machine.json.0000").write_text('{"id": "vm-01')
    store.directory("vm-ffffffffffffffff").mkdir()
    assert store.read_all() == [written]


def test_a_record_that_cannot_be_read_is_an_error_and_not_an_absence(store: RecordStore) -> None:
    store.write(record())
    (store.directory(ID) / "machine.json").write_text("{")
    with pytest.raises(MachineError, match=r"machine\.json cannot be read"):
        store.read_all()


@pytest.mark.parametrize("name", ["", "vm-", "vm-0123456789ABCDEF", "vm-0123456789abcdef0", "../vm-0123456789abcdef"])
def test_only_exact_names_are_machines(store: RecordStore, name: str) -> None:
    with pytest.raises(MachineNotFound):
        store.read(name)


def test_a_deadline_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        record(deadline=datetime(2026, 1, 1))  # noqa: DTZ001


def test_records_are_listed_oldest_first(store: RecordStore) -> None:
    young = store.write(record("vm-0000000000000001", created_at=NOW + timedelta(seconds=1)))
    old = store.write(record("vm-0000000000000002"))
    assert store.read_all() == [old, young]


def test_removal_takes_everything_and_may_be_repeated(store: RecordStore) -> None:
    store.write(record())
    (store.directory(ID) / "sub").mkdir()
    (store.directory(ID) / "sub" / "file").touch()
    with store.lock(ID) as held:
        assert held
        store.remove(ID)
    store.remove(ID)
    assert list(store.directory(ID).parent.iterdir()) == []
    with pytest.raises(MachineNotFound), store.lock(ID):
        pass


def test_the_lock_excludes_others_until_it_is_let_go(store: RecordStore) -> None:
    store.write(record())
    seen = []

    def wait() -> None:
        with store.lock(ID) as held:
            seen.append(held)

    with store.lock(ID):
        with store.lock(ID, patience=0) as held:
            assert not held
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert seen == []
    waiter.join(10)
    assert seen == [True]


def test_who_waits_for_the_lock_of_a_machine_that_goes_is_told_so(store: RecordStore) -> None:
    store.write(record())
    outcome: list[str] = []

    def wait() -> None:
        try:
            with store.lock(ID):
                outcome.append("held")
        except MachineNotFound:
            outcome.append("gone")

    with store.lock(ID):
        waiter = threading.Thread(target=wait)
        waiter.start()
        store.remove(ID)
    waiter.join(10)
    assert outcome == ["gone"]


def test_a_lock_ends_with_its_holder(store: RecordStore, tmp_path: Path) -> None:
    store.write(record())
    script = (
        "import sys, time; from foundation.settings import Settings; from machines.records import RecordStore\n"
        "with RecordStore(Settings()).lock(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TASKYARD_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script, ID], env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with store.lock(ID, patience=0) as held:
            assert not held
        holder.send_signal(signal.SIGKILL)
    with store.lock(ID, patience=10) as held:
        assert held


def test_directories_without_a_record_are_removed(store: RecordStore) -> None:
    kept = store.write(record())
    (store.directory("vm-00000000000000aa")).mkdir()
    aside = store.directory(ID).parent / ".removed-vm-00000000000000bb-0000"
    aside.mkdir()
    (store.directory(ID).parent / "notes").mkdir()
    assert store.remove_remains() == ["vm-00000000000000aa"]
    assert store.read_all() == [kept]
    assert sorted(path.name for path in aside.parent.iterdir()) == [".ledger.lock", "notes", ID]


def test_a_record_has_the_fields_that_every_version_reads(store: RecordStore) -> None:
    """Those of the version that first had machines; a later one may write more, which they leave out."""
    written = json.loads(store.write(record(image_digest="d", acceleration="tcg")).model_dump_json())
    shape = {"cpus": 2, "memory_bytes": 2**30, "image_digest": "d", "acceleration": "tcg"}
    assert shape.items() <= written.items()
    (store.directory(ID) / "machine.json").write_text(json.dumps({**written, "later": {"more": 1}}))
    assert store.read(ID) == record(image_digest="d", acceleration="tcg")
