"""Ids of machines: all of one form, and those that are derived never change."""

from __future__ import annotations

from foundation.machine_ids import MACHINE_ID, machine_id_of, new_machine_id


def test_ids_have_the_form_by_which_machines_are_known() -> None:
    made = [new_machine_id(), new_machine_id(), machine_id_of("a"), machine_id_of("")]
    assert all(MACHINE_ID.fullmatch(each) for each in made)
    assert len(set(made)) == len(made)


def test_the_machine_of_a_run_that_is_under_way_keeps_its_id() -> None:
    assert machine_id_of("run") == "vm-acba25512100f80b"
