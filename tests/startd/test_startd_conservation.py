"""Whatever is carved, given back and left broken, in any order: nothing is lost, and no id is given twice."""

from __future__ import annotations

from collections import Counter

from attrs import frozen
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from cedar.sessions import SessionTable
from startd.held import Requester, Slots
from startd.resources import DoesNotFit, Resources, Rounding, requested
from startd.slottypes import SlotType, plan

MACHINE = Resources(8, 4000, 100_000, {"GPUs": ("A", "A", "B", "C", "C", "C"), "Licenses": 7})
NOBODY = Requester(address=None, user="alice@x", lease_s=60.0, alive_interval_s=300.0)
TYPES = [
    SlotType(1, "cpus=3,memory=1000,disk=20000,gpus=3", 2, partitionable=True),
    SlotType(2, "gpus=0", 1, partitionable=False),
]


@frozen
class Carve:
    """A claim on the slot at this place."""

    at: int
    cpus: int
    memory: int
    gpus: int
    licenses: int


@frozen
class End:
    """The end of one of the claims that there are."""

    which: int
    broken: bool


OPERATIONS = st.lists(
    st.one_of(
        st.builds(
            Carve, st.integers(0, 2), st.integers(0, 3), st.integers(0, 900), st.integers(0, 3), st.integers(0, 4)
        ),
        st.builds(End, st.integers(0, 50), st.booleans()),
    ),
    max_size=40,
)


@given(OPERATIONS)
async def test_resources_are_conserved_and_ids_are_given_once(operations: list[Carve | End]) -> None:
    slots = Slots("node", "<127.0.0.1:1>", 1, SessionTable(), plan(TYPES, MACHINE))
    ids = {slot.current.session_id for slot in slots.own}
    for operation in operations:
        if isinstance(operation, End):
            if slots.held:
                held = list(slots.held.values())[operation.which % len(slots.held)]
                slots.give_back(held, broken=operation.broken)
        else:
            carve(slots, operation, ids)
        check(slots)


def carve(slots: Slots, wanted: Carve, ids: set[str]) -> None:
    slot = slots.own[wanted.at]
    if not slot.partitionable and (slot.claimed_whole or slot.broken):
        return
    job = ClassAd({
        "RequestCpus": wanted.cpus, "RequestMemory": wanted.memory, "RequestDisk": 1000, "RequestGPUs": wanted.gpus,
        "RequestLicenses": wanted.licenses,
    })  # fmt: skip
    before = slot.free
    try:
        part = requested(job, ClassAd(), slot.free, Rounding()) if slot.partitionable else slot.free
    except DoesNotFit:
        assert slot.free == before
        return
    if slot.partitionable:
        assert (part.count("GPUs"), part.count("Licenses")) == (wanted.gpus, wanted.licenses)
        different = len(set(part.ids("GPUs")))
        assert different == min(wanted.gpus, len(set(before.ids("GPUs")))), "different ones as long as there are"
    slots.carve(slot, part, NOBODY)
    assert slot.current.session_id not in ids, "an id that was never one before"
    ids.add(slot.current.session_id)


def check(slots: Slots) -> None:
    whole = MACHINE.nothing
    for slot in slots.own:
        mine = slot.free + slot.withheld
        for held in slot.children:
            mine = mine + held.resources
        assert mine == slot.plan.resources
        whole = whole + mine
    assert MACHINE.holds(whole)
    given_out = Counter(device for held in slots.held.values() for device in held.resources.ids("GPUs"))
    assert given_out <= Counter(MACHINE.ids("GPUs"))
    names = [held.name for held in slots.held.values()]
    assert len(names) == len(set(names))
