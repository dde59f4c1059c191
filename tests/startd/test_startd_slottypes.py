"""From the settings of slot types to slots, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.configuration import from_values
from pilot.knobs import SettingsError
from pilot.settings import Settings
from startd.resources import Resources
from startd.slotsettings import slot_settings
from startd.slottypes import SlotType, parse, plan

MACHINE = Resources(8, 16_000, 1_000_000, {"GPUs": ("CUDA0", "CUDA1", "CUDA2"), "Licenses": 10})


def settings(num_slots: int | None = None, **family: str) -> Settings:
    return attrs.evolve(Settings(), num_slots=num_slots, family=family)


def made(num_slots: int | None = None, machine: Resources = MACHINE, **family: str) -> list[tuple[bool, Resources]]:
    plans = plan(slot_settings(settings(num_slots, **family)).types, machine)
    assert [each.slot_id for each in plans] == list(range(1, len(plans) + 1))
    return [(each.partitionable, each.resources) for each in plans]


def test_without_settings_there_is_one_partitionable_slot_with_everything() -> None:
    assert made() == [(True, MACHINE)]


def test_a_number_alone_divides_evenly_and_the_first_get_what_does_not_divide() -> None:
    four = made(4, SLOT_TYPE_0_PARTITIONABLE="False")
    assert [kind for kind, _ in four] == [False] * 4
    assert [(each.cpus, each.memory_mb, each.disk_kb) for _, each in four] == [(2, 4000, 250_000)] * 4
    assert [each.count("GPUs") for _, each in four] == [1, 1, 1, 0]
    assert [each.count("Licenses") for _, each in four] == [3, 3, 2, 2]
    assert [kind for kind, _ in made(2)] == [True, True]


def test_types_mix_amounts_parts_and_the_rest() -> None:
    slots = made(
        SLOT_TYPE_1="cpus=2, memory=25%, disk=100M, gpus=2", NUM_SLOTS_TYPE_1="1",
        SLOT_TYPE_2="c=1,ram=1g,licenses=0", NUM_SLOTS_TYPE_2="2",
        SLOT_TYPE_3="auto", NUM_SLOTS_TYPE_3="1", SLOT_TYPE_3_PARTITIONABLE="True",
    )  # fmt: skip
    assert [kind for kind, _ in slots] == [False, False, False, True]
    assert slots[0][1] == Resources(2, 4000, 102_400, {"GPUs": ("CUDA0", "CUDA1"), "Licenses": 5})
    assert (slots[1][1].cpus, slots[1][1].memory_mb, slots[1][1].count("Licenses")) == (1, 1024, 0)
    assert (slots[3][1].cpus, slots[3][1].memory_mb) == (4, 16_000 - 4000 - 2048)


@pytest.mark.parametrize("text", ["25%", "1/4", "cpus=25% memory=1/4 disk=25% gpus=0 licenses=25%"])
def test_a_share_for_all_may_be_said_in_several_ways(text: str) -> None:
    (_, slot), *_ = made(SLOT_TYPE_1=text, NUM_SLOTS_TYPE_1="4")
    assert (slot.cpus, slot.memory_mb, slot.disk_kb, slot.count("Licenses")) == (2, 4000, 250_000, 2)


def test_a_config_for_many_machines_may_say_none_of_what_this_one_lacks() -> None:
    bare = Resources(4, 4000, 4000)
    assert made(machine=bare, SLOT_TYPE_1="gpus=0, auto", NUM_SLOTS_TYPE_1="1") == [(False, bare)]
    assert made(machine=bare, SLOT_TYPE_1="gpus=100%, auto, swap=10%", NUM_SLOTS_TYPE_1="1") == [(False, bare)]


@pytest.mark.parametrize(
    ("family", "knob", "words"),
    [
        ({"SLOT_TYPE_1": "cpus=9", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "only 8 of cpus"),
        ({"SLOT_TYPE_1": "cpus=5", "NUM_SLOTS_TYPE_1": "2"}, "SLOT_TYPE_1", "8 cpus"),
        ({"SLOT_TYPE_1": "gpus=4", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "3 GPUs"),
        ({"SLOT_TYPE_1": "fpgas=1", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "it names 'fpgas'"),
        ({"SLOT_TYPE_1": "cpus=", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "25%"),
        ({"SLOT_TYPE_1": "cpus=-1", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "25%"),
        ({"SLOT_TYPE_1": "=1", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "it names ''"),
        ({"SLOT_TYPE_1": "150%", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "whole machine"),
        ({"SLOT_TYPE_1": "1/0", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "1/4"),
        ({"SLOT_TYPE_1": "7", "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "name=value"),
        ({"SLOT_TYPE_1": "x" * 5000, "NUM_SLOTS_TYPE_1": "1"}, "SLOT_TYPE_1", "4096"),
        ({"NUM_SLOTS_TYPE_1": "9"}, "SLOT_TYPE_1", "nothing is left"),
        ({"NUM_SLOTS_TYPE_1": "many"}, "NUM_SLOTS_TYPE_1", "whole number"),
        ({"NUM_SLOTS_TYPE_1": "1000", "NUM_SLOTS_TYPE_2": "1000"}, "NUM_SLOTS_TYPE_N", "1024"),
        ({"SLOT_TYPE_0": "cpus=1"}, "SLOT_TYPE_0", "from 1 on"),
        ({"NUM_SLOTS_TYPE_100": "1"}, "NUM_SLOTS_TYPE_100", "99"),
        ({"NUM_SLOTS_TYPE_99999999999999999999": "1"}, "NUM_SLOTS_TYPE_99999999999999999999", "99"),
        ({"SLOT_TYPE_1_PARTITIONABLE": "maybe"}, "SLOT_TYPE_1_PARTITIONABLE", "True or False"),
        ({"SLOT_TYPE_1_START": "1 +"}, "SLOT_TYPE_1_START", "expression"),
    ],
)
def test_settings_that_do_not_add_up_name_knob_value_and_what_is_there(
    family: dict[str, str], knob: str, words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        made(**family)
    assert refused.value.knob == knob
    assert words in str(refused.value)


def test_too_many_slots_for_the_machine_name_num_slots() -> None:
    with pytest.raises(SettingsError, match="NUM_SLOTS = '9'"):
        made(9)


def test_a_type_may_have_its_own_start_and_what_is_not_acted_on_is_named() -> None:
    read = slot_settings(settings(SLOT_TYPE_1_START='Owner == "x"', SLOT_TYPE_1_NAME_PREFIX="big", NUM_SLOTS_TYPE_1=""))
    assert read.starts == {1: 'Owner == "x"'}
    assert read.unused == ("SLOT_TYPE_1_NAME_PREFIX",)


@given(st.text(max_size=40))
def test_any_description_is_read_or_refused(text: str) -> None:
    with suppress(SettingsError):
        assert set(parse(SlotType(1, text, 1, partitionable=False), ("GPUs",))) == {"cpus", "memory", "disk", "GPUs"}


@given(
    cpus=st.integers(1, 64), memory=st.integers(1, 10**6), disk=st.integers(0, 10**9),
    ids=st.lists(st.sampled_from(["A", "B", "C", "D"]), max_size=12), counted=st.integers(0, 50),
    slots=st.lists(st.tuples(st.sampled_from(["", "25%", "cpus=1,auto", "1/3", "gpus=1,10%"]), st.integers(1, 4)),
                   min_size=1, max_size=3),
)  # fmt: skip
def test_no_plan_gives_more_than_there_is(
    cpus: int, memory: int, disk: int, ids: list[str], counted: int, slots: list[tuple[str, int]]
) -> None:
    machine = Resources(cpus, memory, disk, {"GPUs": tuple(sorted(ids)), "Lic": counted})
    types = [SlotType(n, text, number, partitionable=False) for n, (text, number) in enumerate(slots, start=1)]
    try:
        plans = plan(types, machine)
    except SettingsError:
        return
    total = plans[0].resources.nothing
    for each in plans:
        total = total + each.resources
    assert machine.holds(total)
    assert all(each.resources.cpus >= 1 and each.resources.memory_mb >= 1 for each in plans)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "9" * 400 + " T"])
def test_a_number_without_end_is_refused_and_ends_nothing(value: str) -> None:
    with pytest.raises(SettingsError, match="NUM_SLOTS_TYPE_1"):
        slot_settings(settings(NUM_SLOTS_TYPE_1=value))
    for knob in ("SAILPLANE_MIN_FREE_DISK", "UPDATE_INTERVAL", "POLLING_INTERVAL"):
        with pytest.raises(SettingsError, match=knob):
            from_values({knob: value}, source=None)
