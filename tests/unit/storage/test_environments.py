"""Changes of a sandbox environment that meet one another, arrive late or meet its deletion: one order, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from foundation.errors import BucketUnavailable, NotFound
from storage.environments import store as module
from storage.environments.store import Environment, EnvironmentStore
from tests.stand_ins.memory_bucket import MemoryBucket

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def made(bucket: MemoryBucket, environment_id: str = ID) -> tuple[EnvironmentStore, Environment]:
    store = EnvironmentStore(bucket, lambda: b"k" * 32)
    first = Environment(
        id=environment_id, project="1", owner="o", name="0", network="full", created_at=NOW, updated_at=NOW
    )
    assert store.write(first)
    return store, first


def rename(store: EnvironmentStore, name: str) -> None:
    assert store.write(store.newest(ID).changed(name=name, sealed="sealed", variables=["A"]))


def once(bucket: MemoryBucket, action: str, act: Callable[[], None]) -> None:
    """Have something happen just before the next request of a kind."""

    def before(made: str, _key: str) -> None:
        if made == action:
            bucket.before = lambda _action, _key: None
            act()

    bucket.before = before


@pytest.mark.parametrize("between", range(4))
def test_a_change_counts_or_is_refused_however_many_others_come_between(between: int) -> None:
    bucket = MemoryBucket()
    store, first = made(bucket)
    late = first.changed(name="late")

    def others() -> None:
        for number in range(between):
            rename(store, str(number))

    once(bucket, "put", others)
    # With two and more, the place of the late one is free again, as the others have cleaned up behind themselves.
    assert store.write(late) is (between == 0)
    assert store.newest(ID).name == ("late" if between == 0 else str(between - 1))
    assert len(bucket.objects) <= 2


@pytest.mark.parametrize("behind", range(1, 4))
def test_a_change_counts_on_which_others_stand_before_it_is_known_to_be_stored(behind: int) -> None:
    bucket = MemoryBucket()
    store, first = made(bucket)

    def others() -> None:
        for number in range(behind):
            rename(store, str(number))

    once(bucket, "list", others)
    assert store.write(first.changed(owner="kept"))
    found = store.newest(ID)
    assert (found.name, found.owner) == (str(behind - 1), "kept")


@pytest.mark.parametrize("changes", range(3))
def test_nothing_of_a_deleted_one_stays_whenever_a_change_arrives(changes: int) -> None:
    bucket = MemoryBucket()
    store, first = made(bucket)
    for number in range(changes):
        rename(store, str(number))
    late = store.newest(ID).changed(name="late", sealed="sealed")
    store.delete(store.newest(ID))
    store.delete(first)

    assert not store.write(late)
    with pytest.raises(NotFound):
        store.newest(ID)
    # One whose writer has died by now is taken away by whoever looks next.
    bucket.put(f"environments/{ID}/{late.revision:08d}.json", late.model_dump_json().encode())
    assert store.all() == []
    (left,) = bucket.objects.values()
    assert b'sealed":""' in left.replace(b" ", b"")


def test_a_deletion_is_not_held_up_by_changes_and_its_rest_goes_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()
    store, first = made(bucket)
    once(bucket, "put", lambda: rename(store, "changed"))
    store.delete(first)
    with pytest.raises(NotFound):
        store.newest(ID)
    assert store.all() == []
    assert len(bucket.objects) == 1
    monkeypatch.setattr(module, "_KEPT", timedelta(days=-1))
    assert store.all() == []
    assert bucket.objects == {}


def test_one_that_is_changed_while_it_is_read_is_found() -> None:
    bucket = MemoryBucket()
    store, _ = made(bucket)

    def others() -> None:
        for number in range(3):
            rename(store, str(number))

    once(bucket, "get", others)
    assert store.newest(ID).name == "2"
    once(bucket, "get", others)
    assert [each.name for each in store.all()] == ["2"]


def test_a_deletion_whose_cleaning_fails_has_happened() -> None:
    bucket = MemoryBucket()
    store, first = made(bucket)

    def away(action: str, _key: str) -> None:
        if action == "delete":
            raise BucketUnavailable("away")

    bucket.before = away
    with pytest.raises(BucketUnavailable):
        store.delete(first)
    bucket.before = lambda _action, _key: None
    with pytest.raises(NotFound):
        store.newest(ID)
    assert store.all() == []
    assert len(bucket.objects) == 1
