"""How calls of the switch come to a site when many pilots lose their jobs at once: figures, tables and a picture of it.

The numbers are `bench.spreadmodel`'s, in virtual time.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import attrs

from bench.figures import Figure
from bench.spreadmodel import LONE, MANY, PROCESSES_A_JOB, STOCK_CALL_S, Loss, our_calls, per_second, stock_calls
from pilot.settings import Settings
from procd.main import spread_of
from procd.planner import PATIENT_PART, Spread

RUNS = 20


# --- figures -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """The runs of one loss, by what the design's figures are made of."""

    loss: Loss
    window_s: float
    peaks: list[int]
    means_s: list[float]
    last_s: list[float]

    @property
    def even(self) -> float:
        """Calls a second if they came like clockwork over the window; at least all of them in the one second."""
        return self.loss.calls / max(1.0, self.window_s)

    @property
    def peak_ratio(self) -> float:
        """Of the busiest second, to the even rate."""
        return statistics.median(self.peaks) / self.even

    @property
    def mean_ratio(self) -> float:
        """Of the mean delay, to the window."""
        return statistics.median(self.means_s) / self.window_s


def simulate(loss: Loss, spread: Spread, runs: int = RUNS) -> Outcome:
    """`runs` runs with seeds from 0."""
    each = [our_calls(loss, spread, seed) for seed in range(runs)]
    return Outcome(
        loss,
        min(spread.width_s(loss.jobs), PATIENT_PART * loss.time_s),
        [max(per_second(calls)) for calls in each],
        [statistics.fmean(made.delay_s for made in calls) for calls in each],
        [max(made.delay_s for made in calls) for calls in each],
    )


def why_not() -> str | None:
    """It runs everywhere."""
    return None


def run() -> list[Figure]:
    """The design's two figures, each of the loss for which it is worse."""
    spread = spread_of(Settings())
    outcomes = [simulate(loss, spread) for loss in (LONE, MANY)]
    worst = max(outcomes, key=lambda outcome: outcome.peak_ratio)
    slowest = max(outcomes, key=lambda outcome: outcome.mean_ratio)
    peaks = "; ".join(f"{_words(each.loss)} {each.peak_ratio:.2f}" for each in outcomes)
    means = "; ".join(f"{_words(each.loss)} {each.mean_ratio:.2f}" for each in outcomes)
    return [
        Figure(
            "spread_peak", worst.peaks, "calls/s", "<= 1.5", [worst.even] * RUNS,
            note=f"against an even rate over {worst.window_s:g} s: {peaks}; without spreading: {worst.loss.calls}",
        ),
        Figure(
            "spread_mean_delay", slowest.means_s, "s", "<= 0.55", [slowest.window_s] * RUNS,
            note=f"against the window: {means}",
        ),
    ]  # fmt: skip


def _words(loss: Loss) -> str:
    return f"{loss.pilots:,} pilots losing {loss.jobs}"


def draw(directory: Path) -> Path:
    """Write spread.png."""
    from bench.spreadpicture import picture  # which needs pillow

    path = directory / "spread.png"
    picture(spread_of(Settings())).save(path, optimize=True)
    return path


# --- the tables of docs/spread.md --------------------------------------------------------------------------------

_LOSSES = [Loss(pilots, jobs) for jobs in (1, 8) for pilots in (1, 10, 1000)] + [Loss(1, 64)]
_CHANGES: list[tuple[str, dict[str, Any], Loss]] = [
    ("the defaults", {}, MANY),
    ("the defaults, urgent", {}, attrs.evolve(MANY, urgent=True)),
    ("`SAILPLANE_KILL_JITTER = 0`", {"jitter_s": 0.0}, MANY),
    ("`SAILPLANE_KILL_JITTER = 0.5`", {"jitter_s": 0.5}, MANY),
    ("`SAILPLANE_KILL_WINDOW = 0`", {"window_s": 0.0}, MANY),
    ("`SAILPLANE_KILL_WINDOW = 15`", {"window_s": 15.0}, MANY),
    ("`SAILPLANE_KILL_WINDOW = 15`, `KILLING_TIMEOUT = 10`", {"window_s": 15.0}, attrs.evolve(MANY, time_s=10.0)),
    ("`SAILPLANE_SWITCH_RATE = 0.5`, `SAILPLANE_SWITCH_BURST = 1`", {"rate_per_s": 0.5, "burst": 1}, MANY),
]


def tables() -> tuple[list[str], list[str]]:
    """Rows in Markdown: by pilots and jobs, and by knobs."""
    spread = spread_of(Settings())
    by_loss = [_loss_row(simulate(loss, spread)) for loss in _LOSSES]
    by_knob = [
        f"| {words} | {_cells(simulate(loss, attrs.evolve(spread, **change), 1))} |" for words, change, loss in _CHANGES
    ]
    return by_loss, by_knob


def _loss_row(outcome: Outcome) -> str:
    loss = outcome.loss
    stock = per_second(stock_calls(loss))
    return (
        f"| {loss.pilots:,} | {loss.jobs} | {outcome.window_s:g} s | {loss.calls:,} | {_cells(outcome)}"
        f" | {loss.stock_calls:,} | {max(stock):,} | {loss.jobs * PROCESSES_A_JOB * STOCK_CALL_S:g} s |"
    )


def _cells(outcome: Outcome) -> str:
    """The busiest second, mean delay and longest delay: medians of the runs."""
    mean_s, last_s = statistics.median(outcome.means_s), statistics.median(outcome.last_s)
    return f"{statistics.median(outcome.peaks):,.0f} | {mean_s:.1f} s | {last_s:.1f} s"
