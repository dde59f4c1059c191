"""How often ads go out: what their making costs is bounded, however many slots change."""

from __future__ import annotations

import pytest

from startd.advertise import LONGEST_PAUSE_S, PAUSE_PER_CPU, rest_s


@pytest.mark.parametrize("cpu_s", [0.0001, 0.001, 0.01])
def test_ads_take_a_small_part_of_a_core(cpu_s: float) -> None:
    assert cpu_s / (cpu_s + rest_s(cpu_s)) == pytest.approx(1 / (1 + PAUSE_PER_CPU))


def test_a_change_is_never_held_back_for_long() -> None:
    assert rest_s(10.0) == LONGEST_PAUSE_S
