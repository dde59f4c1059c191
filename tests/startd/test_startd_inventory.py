"""Custom resources: from settings, from inventory commands, from nvidia-smi; and what is refused."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from classad2 import ExprTree, Value
from hypothesis import given
from hypothesis import strategies as st

from cedar.classads import evaluate, matches, to_wire
from pilot.configuration import load
from pilot.knobs import SettingsError
from pilot.settings import Settings
from startd.discovery import discover
from startd.inventory import Found, Source, by_answer, by_nvidia_smi, by_value, sources
from startd.resources import DoesNotFit, Resources, Rounding, requested
from startd.slotads import Machine, daemon_ad, public_ad, roll_up
from tests.startd.test_startd_slots import NOBODY, job, machine, slot_state, slots_of

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
ANSWER = """\
DetectedGPUs="GPU-c4a646d7, GPU-6a96bd13"
Common=[ DriverVersion=12.2; ECCEnabled=true; ]
GPU_6a96bd13=[ id="GPU-6a96bd13"; Capability=7.5; DeviceName="TITAN RTX"; GlobalMemoryMb=24000; DeviceUuid="6a-1"; ]
GPU_c4a646d7=[ id="GPU-c4a646d7"; Capability=7.0; DeviceName="Tesla V100"; GlobalMemoryMb=16000; DeviceUuid="c4-2" ]
CUDADriver = 12.2
State = "Owner"
"""


def source(value: str = "/bin/x", name: str = "GPUs", **more: str) -> Source:
    return Source(name, f"MACHINE_RESOURCE_{name}", value, False, **more)


def gpus() -> Found:
    return by_answer(source(), ANSWER)


def with_gpus() -> tuple[Machine, Resources]:
    found = gpus()
    total = Resources(4, 4000, 100_000, {"GPUs": found.amount, "Licenses": 3})
    return machine(total=total, devices={"GPUs": found.devices}, detected=found.more, needs_proxy=False), total


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        ("7", 7), ("2 * 3", 6), ("CUDA0, CUDA1", ("CUDA0", "CUDA1")), ("b a", ("a", "b")),
        ("CUDA0,CUDA0,CUDA1,CUDA1", ("CUDA0", "CUDA0", "CUDA1", "CUDA1")),
    ],
)  # fmt: skip
def test_a_value_is_a_number_or_ids_which_may_stand_there_twice(value: str, amount: object) -> None:
    assert by_value(source(value)).amount == amount


def test_what_is_offline_is_not_offered() -> None:
    assert by_value(source("a,b,b,c", offline="b")).amount == ("a", "c")
    assert by_value(source("5", offline="2")).amount == 3
    assert by_answer(source(), ANSWER + 'OfflineGPUs = "GPU-6a96bd13"\n').amount == ("GPU-c4a646d7",)


def test_an_inventory_gives_ids_what_is_known_of_each_and_attributes_for_the_ads() -> None:
    found = gpus()
    assert found.amount == ("GPU-6a96bd13", "GPU-c4a646d7")
    known = found.devices["GPU-c4a646d7"]
    assert (known["Capability"], known["DriverVersion"]) == (7.0, 12.2)
    assert "Id" not in known
    assert (found.more["DetectedGPUs"], found.more["CUDADriver"]) == ("GPU-c4a646d7, GPU-6a96bd13", 12.2)
    assert "State" not in found.more, "what makes a slot's ad is not a command's to say"


@pytest.mark.parametrize("said", ["", "what?", "GPUs = 2", "DetectedGPUs = -1", 'DetectedGPUs = "a;b"', "Detected = ["])
def test_an_answer_that_is_none_ends_the_start_with_knob_and_words(said: str) -> None:
    with pytest.raises(SettingsError, match="MACHINE_RESOURCE_GPUs"):
        by_answer(source(), said)


@given(st.text(max_size=200))
def test_any_answer_is_read_or_refused(said: str) -> None:
    with suppress(SettingsError):
        assert by_answer(source(), said).name == "GPUs"


@pytest.mark.parametrize("value", ["a;b", "x" * 200, "-1", "1.5", "a_b, a-b", ",".join(map(str, range(2000)))])
def test_a_value_that_cannot_be_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="MACHINE_RESOURCE_GPUs"):
        by_value(source(value))


def config(directory: Path, text: str) -> Settings:
    file = directory / "sailplane.conf"
    file.write_text(text)
    return load(file, {})


def test_names_are_kept_as_written_and_gpus_as_everybody_knows_them(tmp_path: Path) -> None:
    settings = config(
        tmp_path,
        "MACHINE_RESOURCE_gpus = a\nMACHINE_RESOURCE_Licenses = 3\nOFFLINE_MACHINE_RESOURCE_LICENSES = 1\n"
        "MACHINE_RESOURCE_INVENTORY_Fpgas = /bin/true\nMACHINE_RESOURCE_NAMES = GPUs, licenses\n",
    )
    assert [(each.name, each.is_command, each.offline) for each in sources(settings)] == [
        ("GPUs", False, ""), ("Licenses", False, "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["MACHINE_RESOURCE_Cpus = 3", "MACHINE_RESOURCE_State = 3", "MACHINE_RESOURCE_1x = 3",
     "MACHINE_RESOURCE_GPUs = 1\nMACHINE_RESOURCE_INVENTORY_GPUs = /bin/true"],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="MACHINE_RESOURCE_"):
        sources(config(tmp_path, text + "\n"))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_an_inventory_command_is_run_with_its_arguments(tmp_path: Path) -> None:
    program = script(tmp_path / "discover", f"cat <<'END'\n{ANSWER}END\n[ \"$1 $2\" = '-properties x y' ]")
    settings = config(tmp_path, f"MACHINE_RESOURCE_INVENTORY_GPUs = \"{program} -properties 'x y'\"\n")
    (found,) = await discover(settings, LOG)
    assert found.amount == gpus().amount


@pytest.mark.parametrize("text", ["exit 3", "echo nothing"])
async def test_a_command_that_fails_ends_the_start(tmp_path: Path, text: str) -> None:
    program = script(tmp_path / "discover", text)
    with pytest.raises(SettingsError, match="MACHINE_RESOURCE_INVENTORY_GPUs"):
        await discover(config(tmp_path, f"MACHINE_RESOURCE_INVENTORY_GPUs = {program}\n"), LOG)


async def test_a_command_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        await discover(config(tmp_path, "MACHINE_RESOURCE_INVENTORY_GPUs = /nowhere/discover\n"), LOG)


SMI = """\
GPU 0: Tesla V100-SXM2-16GB (UUID: GPU-abcdef01-1111-2222-3333-444444444444)
GPU 1: NVIDIA A100 (UUID: GPU-bbcdef01-1111-2222-3333-444444444444)
  MIG 1g.5gb      Device  0: (UUID: MIG-aaaa1111-2222-3333-4444-555555555555)
  MIG 2g.10gb     Device  1: (UUID: MIG-bbbb1111-2222-3333-4444-555555555555)
"""


def test_nvidia_smi_lists_cards_and_their_parts() -> None:
    found = by_nvidia_smi(SMI, None)
    assert found.amount == (
        "GPU-abcdef01", "MIG-aaaa1111-2222-3333-4444-555555555555", "MIG-bbbb1111-2222-3333-4444-555555555555",
    )  # fmt: skip
    assert found.devices["GPU-abcdef01"]["DeviceUuid"] == "abcdef01-1111-2222-3333-444444444444"
    assert found.devices[found.amount[2]]["DeviceName"] == "NVIDIA A100 MIG 2g.10gb"


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("0", ["GPU-abcdef01"]), ("", []), ("-1", []), ("GPU-abcdef01", ["GPU-abcdef01"]),
     ("MIG-bbbb1111-2222-3333-4444-555555555555", ["MIG-bbbb1111-2222-3333-4444-555555555555"])],
)  # fmt: skip
def test_only_what_the_batch_system_gave_us_is_ours(visible: str, devices: list[str]) -> None:
    assert list(by_nvidia_smi(SMI, visible).amount) == devices


async def test_nvidia_smi_is_asked_where_nobody_said_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "nvidia-smi", f"cat <<'END'\n{SMI}END")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [each.amount for each in await discover(Settings(), LOG)] == [("GPU-abcdef01",)]
    assert await discover(attrs.evolve(Settings(), startd_detect_gpus="False"), LOG) == []
    said = await discover(config(tmp_path, "MACHINE_RESOURCE_GPUs = 0\n"), LOG)
    assert [each.amount for each in said] == [0]
    script(tmp_path / "nvidia-smi", "exit 9")
    assert await discover(Settings(), LOG) == []


# --- in the ads --------------------------------------------------------------------------------------------------


async def test_a_slot_says_what_it_has_by_htcondors_names() -> None:
    on, total = with_gpus()
    ad = public_ad(on, slot_state(slots_of(total)), now=2, sequence=3)
    assert (ad["GPUs"], ad["TotalGPUs"], ad["TotalSlotGPUs"], ad["Licenses"]) == (2, 2, 2, 3)
    assert ad["MachineResources"] == "Cpus Memory Disk GPUs Licenses"
    assert ad["AssignedGPUs"] == "GPU-6a96bd13,GPU-c4a646d7"
    assert ad["DetectedGPUs"] == "GPU-c4a646d7, GPU-6a96bd13"
    assert (ad["GPUs_DriverVersion"], "GPUs_Capability" in ad) == (12.2, False), "what is the same for all"
    ad["Names"] = ExprTree('join(",", evalInEachContext(DeviceName, AvailableGPUs))')
    assert evaluate(ad, "Names") == "TITAN RTX,Tesla V100"
    ad["Whose"] = ExprTree("GPUs_GPU_c4a646d7.Id")
    assert evaluate(ad, "Whose") == "GPU-c4a646d7"
    assert any(line.startswith("AvailableGPUs = ") for line in to_wire(ad))


async def test_devices_are_given_by_what_the_job_requires_and_come_back() -> None:
    on, total = with_gpus()
    pool = slots_of(total)
    slot = pool.first

    def part(**wants: object) -> Resources:
        ad = public_ad(on, slot_state(pool), now=2, sequence=3)
        return requested(job(RequestGPUs=1, **wants), ad, slot.free, Rounding())

    old = ExprTree("Capability < MaxCapability && GlobalMemoryMb > 1000")
    assert part(RequireGPUs=old, MaxCapability=7.2).ids("GPUs") == ("GPU-c4a646d7",)
    first = part(RequireGPUs=ExprTree("Capability > 7.2"))
    held = pool.carve(slot, first, NOBODY)
    assert held.resources.ids("GPUs") == ("GPU-6a96bd13",)
    ad = public_ad(on, held.slot_state(False), now=2, sequence=3)
    assert (ad["GPUs"], ad["AssignedGPUs"], ad["GPUs_Capability"]) == (1, "GPU-6a96bd13", 7.5)
    left = public_ad(on, slot_state(pool), now=2, sequence=3)
    assert (left["GPUs"], left["TotalSlotGPUs"], left["AssignedGPUs"]) == (1, 2, "GPU-6a96bd13,GPU-c4a646d7")
    with pytest.raises(DoesNotFit, match="suitable"):
        part(RequireGPUs=ExprTree("Capability > 7.2"))
    pool.give_back(held, broken=False)
    assert slot.free == total


async def test_a_partitionable_slot_tells_of_its_dynamic_ones() -> None:
    on, total = with_gpus()
    pool = slots_of(total)
    children = []
    for cpus, gpus in ((1, ("GPU-6a96bd13",)), (2, ())):
        held = pool.carve(pool.first, Resources(cpus, 100, 1, {"GPUs": gpus, "Licenses": 0}), NOBODY)
        children.append(public_ad(on, held.slot_state(False), now=2, sequence=3))
    ad = public_ad(on, slot_state(pool), now=2, sequence=3)
    roll_up(ad, children)
    for name, values in {
        "ChildName": ["slot1_1@node", "slot1_2@node"], "ChildCpus": [1, 2], "ChildGPUs": [1, 0],
        "ChildState": ["Claimed", "Claimed"], "ChildRemoteUser": ["alice@x", "alice@x"], "ChildLicenses": [0, 0],
    }.items():  # fmt: skip
        assert list(evaluate(ad, name)) == values
    assert "ChildClaimIds" not in ad, "secrets"


async def test_what_is_broken_takes_its_devices_along() -> None:
    on, total = with_gpus()
    pool = slots_of(total)
    job_ad = job(RequestGPUs=1, RequestLicenses=2)
    part = requested(job_ad, public_ad(on, slot_state(pool), now=2, sequence=3), pool.first.free, Rounding())
    pool.give_back(pool.carve(pool.first, part, NOBODY), broken=True)
    ad = public_ad(on, slot_state(pool), now=2, sequence=3)
    assert (ad["GPUs"], ad["TotalSlotGPUs"], ad["BrokenSlotGPUs"], ad["BrokenSlotLicenses"]) == (1, 1, 1, 2)
    assert part.ids("GPUs")[0] not in str(ad["AssignedGPUs"])
    assert "slot1_1@node" in str(ad["SlotBrokenReason"])
    assert not matches(ad, job(RequestGPUs=2))
    assert matches(ad, job_ad) is (part.count("Licenses") <= 1)


async def test_a_job_that_wants_more_than_there_is_does_not_match() -> None:
    on, total = with_gpus()
    ad = public_ad(on, slot_state(slots_of(total)), now=2, sequence=3)
    assert matches(ad, job(RequestGPUs=2, RequestLicenses=3))
    assert not matches(ad, job(RequestGPUs=3))
    assert not matches(ad, job(RequestLicenses=4))
    wants = job(
        RequestGPUs=1,
        RequireGPUs=ExprTree("Capability > 7.2"),
        Requirements=ExprTree("countMatches(MY.RequireGPUs, TARGET.AvailableGPUs) >= RequestGPUs"),
    )
    assert matches(wants, ad)
    wants["RequireGPUs"] = ExprTree("Capability > 9")
    assert not matches(wants, ad)


async def test_the_startd_has_an_ad_of_its_own_name() -> None:
    on, total = with_gpus()
    pool = slots_of(total)
    pool.give_back(pool.carve(pool.first, Resources(1, 1, 1), NOBODY), broken=True)
    ad = daemon_ad(on, [slot_state(pool)], now=2, sequence=3)
    assert (ad["MyType"], ad["Name"], ad["TotalGPUs"], ad["DetectedCpus"]) == ("StartD", "node", 2, 4)
    ad["Ids"] = ExprTree('join(",", evalInEachContext(Id, DetectedGPUs))')
    assert evaluate(ad, "Ids") == "GPU-6a96bd13,GPU-c4a646d7"
    assert "slot1_1@node" in str(evaluate(ad, "slot1_1BrokenReason"))
    ad["First"], ad["Whose"] = ExprTree("BrokenReasons[0]"), ExprTree("BrokenContextAds[0].RemoteUser")
    assert evaluate(ad, "First") == evaluate(ad, "slot1_1BrokenReason")
    assert evaluate(ad, "Whose") == NOBODY.user
    assert {name: evaluate(ad["slot1_1BrokenContext"], name) for name in ("Id", "Code", "Cpus", "GPUs")} == {
        "Id": "slot1_1", "Code": 6, "Cpus": 1, "GPUs": Value.Undefined,
    }  # fmt: skip
    for of_a_slot in ("SlotID", "State", "Requirements", "Start", "ClaimId", "HasStartDaemonAd"):
        assert of_a_slot not in ad
    assert public_ad(on, slot_state(pool), now=2, sequence=3)["HasStartDaemonAd"]
