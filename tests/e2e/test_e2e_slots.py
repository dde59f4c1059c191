"""Slot types and custom resources, end to end: jobs get what they ask for by its names, and it comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# In place of condor_gpu_discovery on a machine with two different cards.
DISCOVERY = """#!/bin/sh
cat <<'END'
DetectedGPUs="GPU-aaaaaaaa, GPU-bbbbbbbb"
Common=[ DriverVersion=12.2 ]
GPU_aaaaaaaa=[ id="GPU-aaaaaaaa"; Capability=7.0; DeviceUuid="aaaaaaaa-1111" ]
GPU_bbbbbbbb=[ id="GPU-bbbbbbbb"; Capability=8.0; DeviceUuid="bbbbbbbb-2222" ]
END
"""
SHOW = 'echo "$_CONDOR_SLOT|$_CONDOR_AssignedGPUs|$CUDA_VISIBLE_DEVICES|$NVIDIA_VISIBLE_DEVICES"'


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """A static slot without cards, and a partitionable one with the rest."""
    with Site.open("test") as site:
        program = site.layout.root / "discover-gpus"
        program.write_text(DISCOVERY)
        program.chmod(0o755)
        site.start_pool()
        site.start_startd(
            **STARTD_KNOBS | {
                "NUM_SLOTS_TYPE_1": 1, "SLOT_TYPE_1": "cpus=1, memory=25%, disk=25%, gpus=0, licenses=0",
                "SLOT_TYPE_1_START": "TARGET.WantsStatic =?= true",
                "NUM_SLOTS_TYPE_2": 1, "SLOT_TYPE_2": "auto", "SLOT_TYPE_2_PARTITIONABLE": True,
                "MACHINE_RESOURCE_INVENTORY_GPUs": program, "MACHINE_RESOURCE_Licenses": 3,
            }
        )  # fmt: skip
        yield Jobs(site)
        site.stop()
        assert site.left == []


def test_jobs_get_the_cards_that_suit_them_and_the_next_ones_get_them_again(jobs: Jobs) -> None:
    wants = {"request_gpus": "1", "require_gpus": "Capability >= 7.5", "request_licenses": "2"}
    handed_in = jobs.submit_many("alice", [SHOW] * 2, **wants)
    for job in handed_in:
        jobs.done(job)
        slot, assigned, cuda, nvidia = jobs.fetch("alice", job)["out"].decode().strip().split("|")
        assert slot.startswith("slot2_")
        assert (assigned, cuda, nvidia) == ("GPU-bbbbbbbb", "GPU-bbbbbbbb-2222", "GPU-bbbbbbbb-2222")


@pytest.mark.slow
def test_a_static_slot_is_taken_whole_by_one_job_after_the_other(jobs: Jobs) -> None:
    script = f"{SHOW}; grep -i -E '^(Cpus|SlotType) ' $_CONDOR_MACHINE_AD | sort"
    for role in ("alice", "bob"):
        said = jobs.output(role, script, **{"+WantsStatic": "true", "requirements": 'TARGET.SlotType == "Static"'})
        assert said.splitlines() == ["slot1|10000|10000|none", "Cpus = 1", 'SlotType = "Static"']
