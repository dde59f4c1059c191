"""The switch `userns` in the startd: validated before anything is advertised, and advertised as what it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from demo import runtime
from demo.accounts import Account
from pilot.findings import Validation
from pilot.settings import Settings
from pilot.switch import Switch
from pilot.userns import Host, UsernsSwitch
from startd.machine import describe
from startd.resources import Resources
from startd.slotads import start_expression
from startd.validate import Unusable, validate
from tests.jobwrapper.accounts_at_work import as_account
from tests.jobwrapper.farsides import WRAPPER
from tests.startd.test_startd_slots import slot_state

needs_userns = pytest.mark.needs_userns(in_place=True)


async def test_it_is_advertised_as_isolating_and_serves_jobs_without_a_proxy() -> None:
    machine = describe(Settings(), UsernsSwitch(), "<127.0.0.1:1>", Resources(1, 100, 100), Validation("userns", ()))
    assert (machine.switch, machine.switch_isolates, machine.needs_proxy) == ("userns", True, False)
    state = slot_state()
    assert "x509userproxysubject" not in start_expression(machine, state)


async def _validated(directory: Path, wrapper: Path, switch: Switch | None) -> str:
    settings = attrs.evolve(
        Settings(), execute=directory, sailplane_wrapper_dir=wrapper, sailplane_wrapper_python=Path("/usr/bin/python3")
    )
    try:
        return (await validate(settings, switch or UsernsSwitch(directory / "leases"))).words
    except Unusable as unusable:
        return f"unusable: {unusable}"


@pytest.mark.needs_root
@needs_userns
def test_validation_at_an_ordinary_account(accounts: Mapping[str, Account], open_dir: Path) -> None:
    wrapper = open_dir / "wrapper"
    shutil.copytree(WRAPPER, wrapper)
    runtime.open_up(wrapper)
    pilot = accounts["pilot"]
    assert "sub-uid" in as_account(pilot, _validated, open_dir, wrapper, None)
    wrapper.chmod(0o700)
    assert "o+x" in as_account(pilot, _validated, open_dir, wrapper, None)
    without = UsernsSwitch(open_dir / "leases", Host(tools="/nowhere"))
    assert "package uidmap" in as_account(pilot, _validated, open_dir, wrapper, without)
