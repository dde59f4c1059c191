"""Slot types, GPUs and custom resources of our startd in a stock pool: asked for by condor_submit, shown by
condor_status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.conftest import restart_startd
from tests.interop.stockjobs import StockJobs
from tests.userlog import EXECUTING, TERMINATED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

# In place of condor_gpu_discovery on a machine with two different cards.
DISCOVERY = """#!/bin/sh
cat <<'END'
DetectedGPUs="GPU-aaaaaaaa, GPU-bbbbbbbb"
Common=[ DriverVersion=12.2; DeviceName="Stand-in" ]
GPU_aaaaaaaa=[ id="GPU-aaaaaaaa"; Capability=7.0; GlobalMemoryMb=16000; DeviceUuid="aaaaaaaa-1111" ]
GPU_bbbbbbbb=[ id="GPU-bbbbbbbb"; Capability=8.0; GlobalMemoryMb=40000; DeviceUuid="bbbbbbbb-2222" ]
END
"""
SHOW = 'echo "$_CONDOR_SLOT|$_CONDOR_AssignedGPUs|$CUDA_VISIBLE_DEVICES|$NVIDIA_VISIBLE_DEVICES"'
DIVIDED = {
    "STARTD_NAME": "glidein@sailplane.example",
    "NUM_SLOTS_TYPE_1": 2, "SLOT_TYPE_1": "cpus=1, memory=512, disk=10%, gpus=0, licenses=0",
    "SLOT_TYPE_1_START": "TARGET.WantsStatic =?= true",
    "NUM_SLOTS_TYPE_2": 1, "SLOT_TYPE_2": "auto", "SLOT_TYPE_2_PARTITIONABLE": True,
    "MACHINE_RESOURCE_Licenses": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def divided(stock: StockJobs) -> Iterator[StockJobs]:
    """The pool with a startd of two static slots, and of a partitionable one that has the cards."""
    program = stock.site.layout.root / "discover-gpus"
    program.write_text(DISCOVERY)
    program.chmod(0o755)
    again(stock, MACHINE_RESOURCE_INVENTORY_GPUs=program, **DIVIDED)
    yield stock
    again(stock)


def again(stock: StockJobs, **knobs: Any) -> None:
    startd = stock.site.startd
    assert startd is not None
    startd.stop(deadline_s=40)
    stock.site.startd = None
    restart_startd(stock, **knobs)


def test_a_job_gets_the_card_that_it_requires_and_of_a_custom_resource(divided: StockJobs) -> None:
    wants = {"request_gpus": "1", "gpus_minimum_capability": "7.5", "request_licenses": "2"}
    job = divided.one("alice", SHOW, **wants)
    assert divided.done(job).strip() == "slot3_1|GPU-bbbbbbbb|GPU-bbbbbbbb-2222|GPU-bbbbbbbb-2222"
    ad = divided.ad(job)
    assert (ad["GPUsProvisioned"], ad["LicensesProvisioned"], ad["AssignedGPUs"]) == (1, 2, "GPU-bbbbbbbb")
    text = divided.wait(job, TERMINATED).text
    assert re.search(r'GPUs +: +1 +1 +"GPU-bbbbbbbb"', text), "in the log's table of resources"
    assert re.search(r"Licenses +: +2 +2", text)


def test_two_jobs_have_a_card_each_and_condor_status_shows_it(divided: StockJobs) -> None:
    held = [divided.one(role, "sleep 300", request_gpus="1") for role in ("alice", "bob")]
    for job in held:
        divided.wait(job, EXECUTING)

    def dynamic() -> list[dict[str, object]] | None:
        found = [ad for ad in divided.slots() if ad["SlotType"] == "Dynamic"]
        return found if len(found) == 2 else None

    slots = divided.until(dynamic, "both slots in the collector")
    assert {ad["AssignedGPUs"] for ad in slots} == {"GPU-aaaaaaaa", "GPU-bbbbbbbb"}
    table = divided.pool.tool("condor_status")
    assert "?" not in table
    assert table.count("@glidein@") == 5
    rows = [line.split() for line in divided.pool.tool("condor_status", "-compact").splitlines()]
    (whole,) = (row for row in rows if row[:1] == ["slot3"])
    assert whole[2:5] == ["2", "2", "2"], "two dynamic slots, of a slot with two cores and two cards"
    cards = divided.pool.tool("condor_status", "-gpus").splitlines()
    assert sorted(line.split()[-3:] for line in cards if "slot3_" in line) == [
        ["15.6", "GB", "Stand-in"], ["39.1", "GB", "Stand-in"],
    ]  # fmt: skip
    daemon = divided.pool.tool("condor_status", "-startd", "-af", "Name", "TotalGPUs", "size(DetectedGPUs)")
    assert daemon.split() == ["glidein@sailplane.example", "2", "2"]
    direct = divided.pool.tool("condor_status", "-direct", "glidein@sailplane.example", "-af", "Name").split()
    assert sorted(direct) == sorted(ad["Name"] for ad in divided.slots())
    (parent,) = (ad for ad in divided.slots() if ad["SlotType"] == "Partitionable")
    assert (parent["GPUs"], sum(parent["ChildGPUs"])) == (0, 2)
    for job in held:
        divided.act("rm", job)
    divided.until(lambda: True if len(divided.slots()) == 3 else None, "the cards to be given back")


def test_static_slots_run_one_job_after_another(divided: StockJobs) -> None:
    wants = {"+WantsStatic": "true", "requirements": 'TARGET.SlotType == "Static"'}
    jobs = divided.submit("alice", f"{SHOW}; sleep 1", count=5, **wants)
    said = [divided.done(job).strip() for job in jobs]
    assert {line.partition("|")[2] for line in said} == {"10000|10000|none"}
    assert {line.partition("|")[0] for line in said} <= {"slot1", "slot2"}
