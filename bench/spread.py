"""How calls of the switch come to a site when many pilots lose their jobs at once: simulated, in virtual time.

Each pilot is a `procd.planner.Planner` of its own, that knows nothing of the others; seeds are fixed, so every run of
this program says the same. Times of day, sockets and processes have no part in it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from bench.figures import Figure
from pilot.settings import Settings
from procd.main import spread_of
from procd.planner import PATIENT_PART, Planner, Spread

RUNS = 20
# All jobs are lost within this.
INSTANT_S = 0.001
# What HTCondor 8.8 does depends on these two, which are assumed: processes of a job (a script, a framework and its
# children), and how long one authorised call takes at a site with a central service.
PROCESSES_A_JOB = 10
STOCK_CALL_S = 0.25


class Made(NamedTuple):
    """A call: when, and how long its job waited for it."""

    at_s: float
    delay_s: float


@attrs.frozen
class Loss:
    """So many pilots lose so many jobs each, within INSTANT_S; every job has a credential of its own.

    time_s: what a request has in all (KILLING_TIMEOUT).
    """

    pilots: int
    jobs: int
    urgent: bool = False
    time_s: float = Settings().killing_timeout

    @property
    def calls(self) -> int:
        """Ours: one a job."""
        return self.pilots * self.jobs

    @property
    def stock_calls(self) -> int:
        """HTCondor 8.8's: one a process."""
        return self.calls * PROCESSES_A_JOB


LONE, MANY = Loss(1000, 1), Loss(1000, 8)


def our_calls(loss: Loss, spread: Spread, seed: int) -> list[Made]:
    """What the site sees."""
    draw = random.Random(seed)
    return [made for _ in range(loss.pilots) for made in _calls_of_pilot(loss, spread, draw)]


def _calls_of_pilot(loss: Loss, spread: Spread, draw: random.Random) -> Iterable[Made]:
    planner = Planner(spread)
    asked_s = sorted(draw.uniform(0, INSTANT_S) for _ in range(loss.jobs))
    for job, now_s in enumerate(asked_s):
        yield from _until(planner, now_s, asked_s)
        planner.ask(job, job, urgent=loss.urgent, time_s=loss.time_s, dice=draw.random(), now_s=now_s)
    yield from _until(planner, float("inf"), asked_s)


def _until(planner: Planner, end_s: float, asked_s: Sequence[float]) -> Iterable[Made]:
    """The calls before a time."""
    while (next_s := planner.next_s()) is not None and next_s < end_s:
        for batch in planner.due(next_s):
            for job in batch.tickets:
                yield Made(next_s, next_s - asked_s[job])


def stock_calls(loss: Loss) -> list[Made]:
    """What the site sees of HTCondor 8.8: a pilot's procd calls for one process after the other, without a pause."""
    number = loss.jobs * PROCESSES_A_JOB
    return [Made(turn * STOCK_CALL_S, turn * STOCK_CALL_S) for turn in range(number) for _ in range(loss.pilots)]


def per_second(calls: Iterable[Made]) -> list[int]:
    """How many calls came in each second after the loss."""
    seconds = [int(made.at_s) for made in calls]
    counts = [0] * (max(seconds) + 1)
    for second in seconds:
        counts[second] += 1
    return counts


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
    from bench.spreadpicture import picture

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
