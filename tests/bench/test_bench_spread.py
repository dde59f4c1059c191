"""bench.spread: the simulation says what it should, the page says what the simulation says."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from bench import spread, spreadmodel
from bench.spreadmodel import PROCESSES_A_JOB, STOCK_CALL_S, Loss
from pilot.settings import Settings
from procd.main import spread_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = spread_of(Settings())


def test_every_lost_job_gets_its_call_within_the_window() -> None:
    loss = Loss(50, 8)
    calls = spreadmodel.our_calls(loss, DEFAULTS, seed=3)
    assert len(calls) == loss.calls == 400
    assert all(0 <= made.delay_s <= Settings().sailplane_kill_window for made in calls)
    assert sum(spreadmodel.per_second(calls)) == 400


def test_a_seed_gives_the_same_calls_again() -> None:
    loss = Loss(5, 8)
    assert spreadmodel.our_calls(loss, DEFAULTS, seed=3) == spreadmodel.our_calls(loss, DEFAULTS, seed=3)
    assert spreadmodel.our_calls(loss, DEFAULTS, seed=3) != spreadmodel.our_calls(loss, DEFAULTS, seed=4)


def test_a_jitter_that_is_off_is_seen_in_the_figures() -> None:
    """What the figures are for: it must be possible to miss the goal."""
    outcome = spread.simulate(Loss(100, 8), attrs.evolve(DEFAULTS, jitter_s=0.0), runs=1)
    assert outcome.peaks == [800]
    assert outcome.even == 800
    short = spread.simulate(Loss(100, 8), attrs.evolve(DEFAULTS, jitter_s=0.1), runs=1)
    assert short.peaks == [800]


def test_stock_htcondor_calls_for_every_process_without_a_pause() -> None:
    counts = spreadmodel.per_second(spreadmodel.stock_calls(Loss(3, 2)))
    assert sum(counts) == 3 * 2 * PROCESSES_A_JOB
    assert counts[0] == 3 / STOCK_CALL_S


def test_the_picture_is_small(tmp_path: Path) -> None:
    assert spread.draw(tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "spread.png").stat().st_size < 100_000


@pytest.mark.slow
def test_the_figures_are_met_in_every_run() -> None:
    for figure in spread.run():
        assert figure.met
        goal = float(figure.goal.split()[1])
        assert max(figure.ours) / figure.reference[0] <= goal


@pytest.mark.slow
def test_the_page_shows_what_the_simulation_says() -> None:
    page = (ROOT / "docs/spread.md").read_text().splitlines()
    for table in spread.tables():
        start = page.index(table[0])
        assert page[start : start + len(table)] == table
