"""The names of objects: what earlier versions have stored is found under them."""

from __future__ import annotations

import pytest

from foundation.errors import InvalidParameter
from storage import layout
from storage.layout import STAGED, TASKS

KEYS = {
    "tasks/a/": TASKS.place("a").prefix,
    "tasks/a/record.json": TASKS.place("a").record_key,
    "tasks/a/log/": TASKS.place("a").log_prefix,
    "tasks/a/log/segments/0000000000000007": TASKS.place("a").segment_key(7),
    "tasks/a/log/segments/sealed.json": TASKS.place("a").seal_key,
    "tasks/a/log/merged/0000000000000012-0000000000000007": TASKS.place("a").merged_key(7, 12),
    "tasks/a/log/sealed/0000000000000007-0000000000000012": TASKS.place("a").sealed_part_key(7, 12),
    "tasks/a/artifacts/index.json": TASKS.place("a").artifact_index_key,
    "tasks/a/artifacts/files/bbeac57eb5fca690-b_c.txt": TASKS.place("a").artifact_key("deep/b c.txt"),
    "tasks/a/artifacts/manifest/0000000000000003": TASKS.place("a").manifest_key(3),
    "tasks/a/artifacts/uploaded/0f-b_c.txt": TASKS.place("a").uploaded_key("0f", "b c.txt"),
    "incoming/tasks/a/0f": TASKS.place("a").incoming_key("0f"),
    "staged/a/artifacts/uploaded/0f-c.txt": STAGED.place("a").uploaded_key("0f", "c.txt"),
    "hosts/one%2Ftwo.json": layout.host_key("one/two"),
    "preserved/one%2Ftwo.json": layout.preserved_key("one/two"),
}


@pytest.mark.parametrize(("expected", "key"), KEYS.items())
def test_objects_are_where_they_were(expected: str, key: str) -> None:
    assert key == expected


def test_a_kind_has_a_directory_of_its_own() -> None:
    kinds = [each for each in vars(layout).values() if isinstance(each, layout.Kind)]
    assert len({each.directory for each in kinds} | {"hosts", "preserved", "incoming"}) == len(kinds) + 3
    for kind in kinds:
        with pytest.raises(InvalidParameter, match=f"is not a {kind.noun} id"):
            kind.place("../a")
