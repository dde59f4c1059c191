"""The switch `userns` in the startd: validated before anything is advertised, and advertised as what it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from demo import runtime
from demo.accounts import Account
from pilot.settings import Settings
from pilot.switch import Exited, Misused, Outcome, Signalled, Switch, Unavailable
from pilot.userns import Host, UsernsSwitch
from startd.machine import describe
from startd.resources import Resources
from startd.slotads import start_expression
from startd.validate import Unusable, judge_userns, validate
from tests.jobwrapper.accounts_at_work import as_account
from tests.jobwrapper.farsides import WRAPPER
from tests.startd.test_startd_slots import slots

needs_userns = pytest.mark.needs_userns(in_place=True)


def test_the_wrappers_usage_means_that_it_works() -> None:
    assert "sub-uid" in judge_userns(Exited(100)).words


@pytest.mark.parametrize(
    ("outcome", "passing", "words"),
    [
        (Misused("no range"), False, "no range.*SAILPLANE_SWITCH = none"),
        (Unavailable("all in use"), True, "all in use"),
        (Exited(2), False, "SAILPLANE_WRAPPER_DIR"),
        (Signalled(9), False, "SAILPLANE_WRAPPER_DIR"),
    ],
)
def test_anything_else_is_unusable_in_words(outcome: Outcome, passing: bool, words: str) -> None:
    with pytest.raises(Unusable, match=words) as fault:
        judge_userns(outcome)
    assert fault.value.passing is passing


def test_it_is_advertised_as_isolating_and_serves_jobs_without_a_proxy() -> None:
    machine = describe(Settings(), UsernsSwitch(), "<127.0.0.1:1>", Resources(1, 100, 100))
    assert (machine.switch, machine.switch_isolates, machine.needs_proxy) == ("userns", True, False)
    state = slots().state(refused_users=(), draining=False, trouble="", entered_at=1)
    assert "x509userproxysubject" not in start_expression(machine, state)


async def _validated(directory: Path, wrapper: Path, switch: Switch | None) -> str:
    settings = attrs.evolve(
        Settings(), sailplane_wrapper_dir=wrapper, sailplane_wrapper_python=Path("/usr/bin/python3")
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
