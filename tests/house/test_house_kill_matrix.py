"""The kill matrix (tests/e2e/test_e2e_kill_matrix.py) has a way to every numbered rule and kills every daemon there."""

from __future__ import annotations

from collections import Counter

import pytest

from starter.life import NUMBERED
from tests.e2e.halt_hook import OFFERED, TAKEN
from tests.e2e.kill_ways import DAEMONS, STANDING, SWITCH, WAITING, WAYS, WITH_SPARE


@pytest.mark.parametrize("rule", range(1, len(NUMBERED) + 1))
def test_every_daemon_is_killed_at_every_rule(rule: int) -> None:
    there = {victim for way in WAYS if way.rule == rule for victim in way.there}
    assert set(DAEMONS) - there == set()


@pytest.mark.parametrize(
    ("moment", "there"),
    [(WAITING, WITH_SPARE), (STANDING, WITH_SPARE), (OFFERED, (*DAEMONS, *WITH_SPARE)), (TAKEN, DAEMONS)],
)
def test_so_it_is_where_a_spare_has_no_rule_yet(moment: str, there: tuple[str, ...]) -> None:
    assert {victim for way in WAYS if way.rule == moment for victim in way.there} == set(there)


def test_where_the_switch_stands_the_job_is_killed_too() -> None:
    for way in WAYS:
        assert ("job" in way.there) is ("front" in way.there) is (SWITCH[-1] in way.there), way.id


def test_ways_are_told_apart() -> None:
    assert [name for name, number in Counter(way.id for way in WAYS).items() if number > 1] == []
