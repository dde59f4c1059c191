"""Devices in a job's environment, and in what its submit side is told."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from cedar.classads import parse_old
from pilot.knobs import SettingsError
from pilot.settings import Settings
from starter import updates
from starter.devices import templates, variables
from starter.messages import Activation

NAMES = 'MachineResources = "Cpus Memory Disk GPUs Licenses"\n'
TWO = parse_old(
    NAMES + 'GPUs = 2\nLicenses = 3\nAssignedGPUs = "GPU-aa,GPU-bb"\nAvailableGPUs = { GPUs_GPU_aa, GPUs_GPU_bb }\n'
    'GPUs_GPU_aa = [ Id = "GPU-aa"; DeviceUuid = "aaaa-1" ]\nGPUs_GPU_bb = [ Id = "GPU-bb"; DeviceUuid = "MIG-b" ]\n'
)
NONE = parse_old(NAMES + "GPUs = 0\nLicenses = 3\nAvailableGPUs = { }\n")


def settings(**family: str) -> Settings:
    return attrs.evolve(Settings(), family={knob.upper(): text for knob, text in family.items()})


def test_gpus_are_told_by_the_names_that_their_libraries_know() -> None:
    assert variables(TWO, settings()) == {
        "_CONDOR_AssignedGPUs": "GPU-aa,GPU-bb",
        "GPU_DEVICE_ORDINAL": "GPU-aa,GPU-bb",
        "CUDA_VISIBLE_DEVICES": "GPU-aaaa-1,MIG-b",
        "NVIDIA_VISIBLE_DEVICES": "GPU-aaaa-1,MIG-b",
    }


def test_a_job_without_gpus_sees_none_of_the_nodes() -> None:
    assert variables(NONE, settings()) == {
        "_CONDOR_AssignedGPUs": "10000",
        "GPU_DEVICE_ORDINAL": "10000",
        "CUDA_VISIBLE_DEVICES": "10000",
        "NVIDIA_VISIBLE_DEVICES": "none",
    }
    assert variables(ClassAd({"MachineResources": "Cpus Memory Disk"}), settings()) == {}


def test_ids_of_older_discoveries_become_numbers() -> None:
    old = parse_old(NAMES + 'GPUs = 2\nAssignedGPUs = "CUDA0, OCL1"\n')
    found = variables(old, attrs.evolve(settings(), auto_set_nvidia_visible_devices=False))
    assert (found["GPU_DEVICE_ORDINAL"], found["CUDA_VISIBLE_DEVICES"]) == ("0,1", "0,OCL1")
    assert "NVIDIA_VISIBLE_DEVICES" not in found


def test_a_site_makes_variables_of_its_own() -> None:
    slot = parse_old('MachineResources = "Fpga"\nFpga = 2\nAssignedFpga = "card-7,card-8"\n')
    text = "FIRST=/card-(.)/$1$1$9/ AS_IS, SECOND=#card#c/#"
    found = variables(slot, settings(ENVIRONMENT_FOR_AssignedFpga=text.replace("AS_IS,", "AS_IS")))
    assert found == {
        "FIRST": "77,88", "AS_IS": "card-7,card-8", "SECOND": "c/-7,c/-8", "_CONDOR_AssignedFpga": "card-7,card-8",
    }  # fmt: skip


def test_a_site_says_what_none_means() -> None:
    slot = parse_old('MachineResources = "Fpga"\nFpga = 0\n')
    assert variables(slot, settings()) == {}
    found = variables(slot, settings(ENVIRONMENT_FOR_AssignedFpga="F", ENVIRONMENT_VALUE_FOR_UnAssignedFpga="no"))
    assert found == {"F": "no", "_CONDOR_AssignedFpga": "no"}


@pytest.mark.parametrize("text", ["=x", "1X", "A=", "A=/x", "A=/x/y", "A=/(/y/", "A B=/c"])
def test_a_template_that_cannot_be_read_names_its_knob(text: str) -> None:
    with pytest.raises(SettingsError, match="ENVIRONMENT_FOR_ASSIGNEDX"):
        templates(settings(ENVIRONMENT_FOR_AssignedX=text))


@given(st.text(max_size=30))
def test_any_template_is_read_or_refused(text: str) -> None:
    with suppress(SettingsError):
        templates(settings(ENVIRONMENT_FOR_AssignedX=text))


def activation(slot: ClassAd) -> Activation:
    return Activation("slot1_1@h", "id", str(slot), "", {}, "<127.0.0.1:1>", 1, 128, 1024, 1.0, "/nowhere")


def test_the_submit_side_is_told_what_the_job_got() -> None:
    ad = updates.provisioned(activation(TWO))
    assert (ad["GPUsProvisioned"], ad["LicensesProvisioned"], ad["AssignedGPUs"]) == (2, 3, "GPU-aa,GPU-bb")
    assert ad["ProvisionedResources"] == "Cpus Memory Disk GPUs Licenses"
    assert "MachineResources" not in ad
    info = updates.starter_info(activation(TWO), "/s", "d", reconnects=True)
    assert (info["GPUs"], info["MachineResources"]) == (2, "Cpus Memory Disk GPUs Licenses")
    plain = updates.provisioned(activation(ClassAd({"MachineResources": "Cpus Memory Disk"})))
    assert plain["ProvisionedResources"] == "Cpus Memory Disk"
