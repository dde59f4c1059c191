"""For every numbered rule of a starter's life (docs/job-life.md) a way that leads a job there, and who is there then.

Each way leaves the starter standing still right behind the rule. What the job becomes afterwards does not depend on who
is killed: a way that has to be gone again leads to the same end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import attrs

from demo.grid import make_proxy
from pilot.rpc import RpcRefused
from pool import messages as m
from starter.limits import SHADOW_MARGIN_S
from tests.e2e.conftest import SHORT_LEASE
from tests.e2e.halt_hook import OFFERED, TAKEN
from tests.e2e.walks import JITTER, MARGIN_S, Walk

DONE = "echo done"
LONG = "sleep 600 & wait"
OBEDIENT = "trap 'exit 0' TERM; sleep 600 & wait"
STUBBORN = "trap '' TERM; while :; do sleep 600 & wait; done"
# A job that is started again from its checkpoint, and then done.
CHECKPOINTS = "n=$(cat state 2>/dev/null || echo 0); n=$((n + 1)); echo $n > state; [ $n -ge 2 ] || exit 85; echo done"
CHECKPOINT = {"checkpoint_exit_code": "85", "transfer_checkpoint_files": "state", "transfer_output_files": "state"}
# A launch that lasts.
SLOW_LAUNCH = {"+PreCmd": '"/bin/sleep"', "+PreArguments": '"600"'}
# What a proxy's life has to be at the least for a job to get as far as it should, on a machine with much else to do.
WAY_S = 10.0
ENDING_S = MARGIN_S * JITTER + WAY_S
LEASE_S = float(SHORT_LEASE["SAILPLANE_POOL_LEASE"])
# A time that a job allows itself, and when the starter sees to it if the shadow does not (PERIODIC_EXPR_INTERVAL is 0).
SHORT_S = 1
LATE_S = SHORT_S + SHADOW_MARGIN_S
MANY = "i=0; while [ $i -lt 30 ]; do sleep 600 & i=$((i + 1)); done; wait"

DAEMONS = ("procd", "spawner", "starter", "startd", "pool")
SWITCH = ("front", "root part")
# A spare stands in for the starter until it has taken an activation.
WAITING, STANDING = "waiting", "standing"
WITH_SPARE = ("spare", *(daemon for daemon in DAEMONS if daemon != "starter"))
WITH_JOB = (*DAEMONS, *SWITCH, "job")
# procd ends with its startd.
WITHOUT_STARTD = ("spawner", "starter", "pool")
WITH_JOB_BUT_STARTD = (*WITHOUT_STARTD, *SWITCH, "job")
WITHOUT_POOL = ("procd", "spawner", "starter", "startd")
WITHOUT_POOL_BUT_JOB = ("procd", "startd", *SWITCH, "job")


@attrs.frozen
class Way:
    """To one rule, or to a moment in a spare's life. ``there``: who is killed there, one a case; ``ends``: what becomes
    of the job; ``finish``: what has to be done for that afterwards; ``name``: beside the first way to a rule."""

    rule: int | str
    lead: Callable[[Walk], None]
    there: tuple[str, ...]
    ends: str
    finish: Callable[[Walk], None] = lambda walk: None
    name: str = ""

    @property
    def id(self) -> str:
        return f"{self.rule}{'-' if self.name else ''}{self.name}"


def straight(script: str, rule: int, **wishes: str) -> Callable[[Walk], None]:
    """A job that passes this rule by itself."""
    return lambda walk: walk.to(rule, lambda: walk.submit(script, **wishes))


def removed(script: str, *rules: int, after: int = 4, **wishes: str) -> Callable[[Walk], None]:
    """A job that is removed softly where `after` has led, and passes `rules` then."""

    def lead(walk: Walk) -> None:
        walk.to(after, lambda: walk.submit(script, **wishes))
        first, *others = rules
        walk.to(first, walk.remove)
        for rule in others:
            walk.to(rule)

    return lead


def without_startd(lead: Callable[[Walk], None], rule: int) -> Callable[[Walk], None]:
    """The startd is killed where `lead` has led."""

    def led(walk: Walk) -> None:
        lead(walk)
        walk.to(rule, walk.kill_startd)

    return led


def denied(walk: Walk) -> None:
    """The proxy of somebody whom the site does not know; somebody new, for the startd remembers for a while."""
    user = walk.jobs.user("alice")
    certified = walk.site.grid.user(f"Stranger {time.monotonic_ns()}")
    path = walk.site.put(user, f"stranger{time.monotonic_ns()}", make_proxy(certified).pem, mode=0o600)
    walk.to(5, lambda: walk.submit(DONE, x509userproxy=str(path)))


def judged(walk: Walk) -> None:
    """The job is held; or, where nobody was left to be told, the startd matches no more jobs of that identity."""
    text = "do not match here for a while"

    def there() -> bool:
        return walk.jobs.rows()[walk.job]["state"] == "held" or text in walk.log("StartLog")

    walk.jobs.until("the site's word to be known", there)
    walk.remove(hard=True)


def site_down(walk: Walk) -> None:
    walk.to(2, lambda: walk.submit(DONE))
    walk.to(5, (walk.hooks / "down").touch)


def site_up(walk: Walk) -> None:
    (walk.hooks / "down").unlink()


def too_much_input(walk: Walk) -> None:
    walk.site.put(walk.jobs.user("alice"), f"big{time.monotonic_ns()}", b"\0" * (2 << 20))
    big = max(walk.jobs.user("alice").home.glob("big*"))
    walk.to(5, lambda: walk.submit(DONE, transfer_input_files=big.name, max_transfer_input_mb="1"))


def no_interpreter(walk: Walk) -> None:
    walk.to(6, lambda: walk.submit(DONE, shell="/nonexistent/sh"))


def launching(walk: Walk, **wishes: str) -> None:
    walk.to(3, lambda: walk.submit(LONG, **SLOW_LAUNCH, **wishes))


def removed_in_launch(walk: Walk) -> None:
    launching(walk)
    walk.to(15, walk.remove)


def removed_twice(walk: Walk) -> None:
    removed(STUBBORN, 16)(walk)
    walk.to(17, lambda: walk.remove(hard=True))


def removed_twice_early(walk: Walk) -> None:
    removed(LONG, 14, after=2)(walk)
    walk.to(43, lambda: walk.remove(hard=True))


def another_pool(walk: Walk) -> None:
    walk.kill_pool()
    walk.start_pool()


def cut_off_early(walk: Walk) -> None:
    walk.to(2, lambda: walk.submit(DONE))
    walk.to(19, lambda: another_pool(walk))


def started(walk: Walk) -> None:
    walk.to(4, lambda: walk.submit(walk.gated()))


def shadow_lost(walk: Walk) -> None:
    started(walk)
    given_up(walk, 20)


def given_up(walk: Walk, rule: int) -> None:
    """The pool is killed, and no other is started while the job's lease lasts. The starter stands still meanwhile, so
    that its present step is not over before."""
    walk.to(41, walk.kill_pool)
    walk.to(rule, lambda: time.sleep(LEASE_S))


def shadow_lost_after(lead: Callable[[Walk], None], rule: int) -> Callable[[Walk], None]:
    """The same where `lead` has led."""

    def led(walk: Walk) -> None:
        lead(walk)
        given_up(walk, rule)

    return led


def startd_lost(walk: Walk) -> None:
    started(walk)
    walk.to(20, walk.kill_startd)


def proxy_ends_early(walk: Walk) -> None:
    walk.to(24, lambda: walk.submit(LONG, proxy_s=MARGIN_S))


def proxy_ends_in_launch(walk: Walk) -> None:
    walk.to(3, lambda: walk.submit(LONG, proxy_s=ENDING_S, **SLOW_LAUNCH))
    walk.to(25)


def proxy_ends(walk: Walk) -> None:
    walk.to(4, lambda: walk.submit(OBEDIENT, proxy_s=ENDING_S))
    walk.to(26)


def proxy_ends_at_a_checkpoint(walk: Walk) -> None:
    walk.to(33, lambda: walk.submit(CHECKPOINTS, proxy_s=ENDING_S, **CHECKPOINT))
    walk.to(40, lambda: time.sleep(WAY_S + MARGIN_S * (JITTER - 1)))


def done_with_an_ending_proxy(walk: Walk) -> None:
    """Its lease is longer than its proxy's life: otherwise it is chance what the starter sees first."""
    walk.kill_pool()
    walk.start_pool(SAILPLANE_POOL_LEASE=int(2 * ENDING_S))
    walk.jobs.until("the startd's ads", lambda: walk.ask(lambda channel: channel.call(m.ListSlots(0))).rows)
    walk.to(10, lambda: walk.submit(DONE, proxy_s=ENDING_S))


def proxy_ends_undelivered(walk: Walk) -> None:
    done_with_an_ending_proxy(walk)
    walk.to(41, walk.kill_pool)
    walk.to(44)


def proxy_ends_before_delivery(walk: Walk) -> None:
    """The next pool is there, but has not taken the job up yet."""
    done_with_an_ending_proxy(walk)
    walk.to(41, lambda: another_pool(walk))
    walk.to(44, lambda: time.sleep(WAY_S + MARGIN_S * (JITTER - 1)))


def suspended(walk: Walk) -> None:
    started(walk)
    walk.to(27, lambda: walk.act("suspend"))


def go_on(walk: Walk) -> None:
    """`continue` for a job that is suspended still: a killed one runs anew."""

    def there() -> bool:
        state = walk.jobs.rows()[walk.job]["state"]
        if state == "suspended":
            with suppress(RpcRefused):  # it is so no more
                walk.act("continue")
        return state == "completed"

    walk.jobs.until("the job to be done", there)


def continued(walk: Walk) -> None:
    """Its shadow has to know first that the job is suspended."""
    suspended(walk)
    walk.go()
    walk.jobs.wait_for(walk.job, "suspended")
    walk.to(28, lambda: walk.act("continue"))


def late_early(walk: Walk) -> None:
    walk.to(2, lambda: walk.submit(LONG, allowed_job_duration=str(SHORT_S)))
    walk.to(29, lambda: time.sleep(LATE_S))


def late_in_launch(walk: Walk) -> None:
    launching(walk, allowed_job_duration=str(SHORT_S))
    walk.to(30)


def late_while_stopping(walk: Walk) -> None:
    """Its shadow has it stopped first."""
    walk.to(16, lambda: walk.submit(STUBBORN, allowed_job_duration=str(SHORT_S)))
    walk.to(32, lambda: time.sleep(LATE_S))


def removed_at_a_checkpoint(walk: Walk) -> None:
    removed(CHECKPOINTS, 38, after=33, **CHECKPOINT)(walk)


def cut_off(walk: Walk) -> None:
    started(walk)
    walk.to(41, walk.kill_pool)


def cut_off_for_a_moment(walk: Walk) -> None:
    started(walk)
    walk.to(41, lambda: another_pool(walk))


def taken_up(walk: Walk) -> None:
    cut_off(walk)
    walk.to(42, walk.start_pool)


def spare_waits(walk: Walk) -> None:
    """One is forked for each activation, and no other if it is killed."""
    if not walk.jobs.spares():
        walk.submit(DONE)
        walk.jobs.wait_for(walk.job, "completed")
    walk.jobs.until("a spare", walk.jobs.spares)


def spare_stands(walk: Walk) -> None:
    """Somebody has stopped it."""
    spare_waits(walk)
    for pid in walk.jobs.spares():
        os.kill(pid, signal.SIGSTOP)


def spare_at(moment: str) -> Callable[[Walk], None]:
    """One that stands still at this moment."""

    def led(walk: Walk) -> None:
        spare_waits(walk)
        walk.to(moment, lambda: walk.submit(DONE))

    return led


def spare_stands_with_an_activation(walk: Walk) -> None:
    """Nobody continues it."""
    spare_at(OFFERED)(walk)
    walk.halted = 0


def then_a_job(walk: Walk) -> None:
    walk.submit(DONE)


WAYS = (
    Way(WAITING, spare_waits, WITH_SPARE, "completed", then_a_job),
    Way(STANDING, spare_stands, WITH_SPARE, "completed", then_a_job),
    Way(OFFERED, spare_at(OFFERED), DAEMONS, "completed"),
    Way(OFFERED, spare_stands_with_an_activation, WITH_SPARE, "completed", name="standing"),
    Way(TAKEN, spare_at(TAKEN), DAEMONS, "completed"),
    Way(1, straight(DONE, 1), DAEMONS, "completed"),
    Way(2, straight(DONE, 2), DAEMONS, "completed"),
    Way(3, straight(DONE, 3), WITH_JOB, "completed"),
    Way(4, started, WITH_JOB, "completed"),
    Way(5, too_much_input, DAEMONS, "held"),
    Way(5, denied, DAEMONS, "removed", judged, name="denied"),
    Way(5, site_down, DAEMONS, "completed", site_up, name="down"),
    Way(6, no_interpreter, DAEMONS, "held"),
    Way(7, straight(DONE, 7, transfer_output_files="never"), DAEMONS, "held"),
    Way(8, straight(DONE, 8), DAEMONS, "completed"),
    Way(9, removed(OBEDIENT, 16, 9), DAEMONS, "removed"),
    Way(10, straight(DONE, 10), WITH_JOB, "completed"),
    Way(11, straight(DONE, 11), DAEMONS, "completed"),
    Way(12, removed(LONG, 16, 12), DAEMONS, "removed"),
    Way(13, straight(DONE, 13), DAEMONS, "completed"),
    Way(14, removed(LONG, 14, after=2), DAEMONS, "removed"),
    Way(15, removed_in_launch, WITH_JOB, "removed"),
    Way(16, removed(OBEDIENT, 16), WITH_JOB, "removed"),
    Way(17, removed_twice, WITH_JOB, "removed"),
    Way(18, removed(DONE, 18, after=10), WITH_JOB, "removed"),
    Way(19, cut_off_early, DAEMONS, "completed"),
    Way(19, without_startd(straight(DONE, 2), 19), WITHOUT_STARTD, "completed", name="startd"),
    Way(20, shadow_lost, WITHOUT_POOL_BUT_JOB, "completed"),
    Way(20, startd_lost, WITHOUT_STARTD, "completed", name="startd"),
    Way(21, shadow_lost_after(straight(DONE, 10), 21), WITHOUT_POOL_BUT_JOB, "completed"),
    Way(21, without_startd(straight(DONE, 10), 21), WITHOUT_STARTD, "completed", name="startd"),
    Way(22, shadow_lost_after(removed(LONG, 14, after=2), 22), ("procd", "startd"), "removed"),
    Way(22, without_startd(removed(LONG, 14, after=2), 22), WITH_JOB_BUT_STARTD, "removed", name="startd"),
    Way(23, shadow_lost_after(straight(DONE, 11), 23), ("procd", "startd"), "completed"),
    Way(23, without_startd(straight(DONE, 11), 23), WITHOUT_STARTD, "completed", name="startd"),
    Way(24, proxy_ends_early, DAEMONS, "held"),
    Way(25, proxy_ends_in_launch, WITH_JOB, "held"),
    Way(26, proxy_ends, WITH_JOB, "held"),
    Way(27, suspended, WITH_JOB, "completed", go_on),
    Way(28, continued, WITH_JOB, "completed"),
    Way(29, late_early, DAEMONS, "held"),
    Way(30, late_in_launch, WITH_JOB, "held"),
    Way(31, straight(MANY, 31), WITH_JOB, "held"),
    Way(32, late_while_stopping, WITH_JOB, "held"),
    Way(33, straight(CHECKPOINTS, 33, **CHECKPOINT), DAEMONS, "completed"),
    Way(34, removed(f"trap 'exit 85' TERM; {LONG}", 16, 34, **CHECKPOINT), DAEMONS, "removed"),
    Way(35, straight(CHECKPOINTS, 35, **CHECKPOINT), DAEMONS, "completed"),
    Way(36, straight(CHECKPOINTS, 36, **CHECKPOINT), DAEMONS, "completed"),
    Way(37, straight("exit 85", 37, **CHECKPOINT), DAEMONS, "held"),
    Way(38, removed_at_a_checkpoint, DAEMONS, "removed"),
    Way(39, shadow_lost_after(straight(CHECKPOINTS, 33, **CHECKPOINT), 39), ("procd", "startd"), "completed"),
    Way(39, without_startd(straight(CHECKPOINTS, 33, **CHECKPOINT), 39), WITHOUT_STARTD, "completed", name="startd"),
    Way(40, proxy_ends_at_a_checkpoint, DAEMONS, "held"),
    Way(41, cut_off, (*WITHOUT_POOL, *SWITCH, "job"), "completed"),
    Way(41, cut_off_for_a_moment, ("pool",), "completed", name="pool"),
    Way(42, taken_up, WITH_JOB, "completed"),
    Way(43, removed_twice_early, DAEMONS, "removed"),
    Way(44, proxy_ends_undelivered, WITHOUT_POOL, "held"),
    Way(44, proxy_ends_before_delivery, ("pool",), "held", name="pool"),
)
