"""Every fuzz target, with its seeds and with what hypothesis makes of them; ./dev fuzz goes on for longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES, target


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_pass(name: str) -> None:
    module = target(name)
    assert module.SEEDS
    for seed in module.SEEDS:
        module.once(seed)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_near_the_seeds_are_refused_or_harmless(name: str, data: st.DataObject) -> None:
    module = target(name)
    seed = data.draw(st.sampled_from(module.SEEDS) | st.binary(max_size=600))
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(changed))))
        changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    module.once(bytes(changed))
