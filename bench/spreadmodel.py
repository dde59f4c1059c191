"""Many pilots that lose their jobs at once, in virtual time: when their calls of the switch come to the site.

Each pilot is a `procd.planner.Planner` of its own, that knows nothing of the others; seeds are fixed, so every run says
the same. Times of day, sockets and processes have no part in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import attrs

from pilot.settings import Settings
from procd.planner import Planner, Spread

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
