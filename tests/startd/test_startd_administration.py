"""What administrators may ask of a startd, and that nobody else may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd, ExprTree

from cedar.claims import ClaimId
from cedar.classads import get_str, parse_old
from cedar.client import Negotiate, connect
from cedar.codec import Item
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from pilot.configuration import load
from startd import drain
from startd.administration import LEVEL, Manner
from startd.claim import State
from startd.claimevents import Activate, Cause, Retire, Shutdown, StarterGone, StarterRuns
from startd.drain import CannotDrain, HowFast, Refusal, Then, parse
from startd.held import Held
from startd.reconfigure import CHANGEABLE, merge
from tests.startd.startdport import JOB, Port, guessed, port, state


def capability(on: Port) -> ClaimId:
    return ClaimId.parse(on.administration.capability())


async def ask(on: Port, command: Command, **values: object) -> ClassAd:
    ad = ClassAd()
    for name, value in values.items():
        ad[name] = value
    reader = await on.say(command, capability(on), ad)
    assert reader is not None
    return reader.ad()


def another_id(claim: ClaimId) -> ClaimId:
    """With the same secret: what shows the key is not what is missing."""
    head, mark, number = claim.session_id.rpartition("#")
    return ClaimId.parse(f"{head[:-1]}{'1' if head[-1] == '0' else '0'}{mark}{number}#{claim.info}{claim.secret}")


def run_job(held: Held) -> None:
    """The claim's life says that a starter runs; there is none."""
    held.life.handle(Activate(1), now_s=0.0)
    held.life.handle(StarterRuns(0), now_s=0.0)


async def until(on: Port, held: Held, wanted: State) -> None:
    with trio.fail_after(30):
        while held.life.state is not wanted:
            await on.claims.wait_change()


# --- who may -----------------------------------------------------------------------------------------------------


COMMANDS: list[tuple[Command, tuple[Item, ...]]] = [
    (Command.DRAIN_JOBS, (ClassAd(),)),
    (Command.CANCEL_DRAIN_JOBS, (ClassAd(),)),
    (Command.VACATE_CLAIM, ("slot1@node",)),
    (Command.VACATE_ALL_FAST, ()),
    (Command.OFF_FAST, ()),
    (Command.RECONFIG, ()),
]


@pytest.mark.parametrize(("command", "items"), COMMANDS)
async def test_a_claims_session_commands_no_startd(command: Command, items: tuple[Item, ...]) -> None:
    async with port() as on:
        held = await on.claim()
        before = state(on)
        with pytest.raises((PeerFault, Refused)):
            await on.say(command, held.claim_id, *items)
        assert (state(on), on.ended, on.reconfigured, on.claims.drain) == (before, [], [], None)


@pytest.mark.parametrize(("command", "items"), COMMANDS)
async def test_a_guessed_capability_is_none(command: Command, items: tuple[Item, ...]) -> None:
    async with port() as on:
        before = state(on)
        guess = guessed(capability(on)) if items else another_id(capability(on))
        with pytest.raises((PeerFault, Refused)):
            await on.say(command, guess, *items)
        assert (state(on), on.ended, on.reconfigured, on.claims.drain) == (before, [], [], None)


async def test_a_capability_is_no_claim() -> None:
    async with port() as on:
        with pytest.raises((PeerFault, Refused)):
            await on.say(Command.RELEASE_CLAIM, capability(on), on.slot.current.text)


async def test_a_capability_is_kept_for_a_while_and_then_made_anew(autojump_clock: trio.testing.MockClock) -> None:
    async with port() as on:
        first = on.administration.capability()
        assert on.administration.capability() == first
        await trio.sleep(31)
        second = on.administration.capability()
        assert second != first
        sessions = on.slots.sessions
        assert sessions.get(ClaimId.parse(first).session_id, trio.current_time()) is not None
        await trio.sleep(1800)
        assert sessions.get(ClaimId.parse(first).session_id, trio.current_time()) is None


# --- draining ----------------------------------------------------------------------------------------------------


async def test_draining_gracefully_waits_for_the_job_and_takes_no_other() -> None:
    async with port() as on:
        held = await on.claim()
        on.claims.retirement_s = lambda held: 600.0
        run_job(held)
        answer = await ask(on, Command.DRAIN_JOBS, HowFast=0, DrainReason="new kernel\nforged")
        assert answer["Result"] is True
        assert held.life.state is State.RETIRING
        assert not on.claims.takes_jobs
        assert on.claims.drain is not None
        assert on.claims.drain.reason == "new kernel?forged"
        assert get_str(answer, "RequestID") == on.claims.drain.request_id


@pytest.mark.parametrize(("how_fast", "how"), [(10, "graceful"), (20, "fast")])
async def test_faster_draining_ends_the_job(how_fast: int, how: str) -> None:
    async with port() as on:
        held = await on.claim()
        on.claims.retirement_s = lambda held: 600.0
        run_job(held)
        await ask(on, Command.DRAIN_JOBS, HowFast=how_fast)
        await until(on, held, State.CLOSING)
        assert any(entry.event in ("RetireTimer", "Shutdown") for entry in held.life.story), how


async def test_called_off_the_job_goes_on() -> None:
    async with port() as on:
        held = await on.claim()
        on.claims.retirement_s = lambda held: 600.0
        run_job(held)
        started = await ask(on, Command.DRAIN_JOBS, HowFast=0)
        wrong = await ask(on, Command.CANCEL_DRAIN_JOBS, RequestID="another")
        assert (wrong["Result"], wrong["ErrorCode"]) == (False, Refusal.NO_SUCH_REQUEST.value)
        assert held.life.state is State.RETIRING
        assert (await ask(on, Command.CANCEL_DRAIN_JOBS, RequestID=started["RequestID"]))["Result"] is True
        assert held.life.state is State.BUSY
        assert on.claims.takes_jobs


async def test_a_second_request_is_refused_and_changes_nothing() -> None:
    async with port() as on:
        await ask(on, Command.DRAIN_JOBS, HowFast=0)
        before = on.claims.drain
        answer = await ask(on, Command.DRAIN_JOBS, HowFast=20)
        assert (answer["Result"], answer["ErrorCode"]) == (False, Refusal.ALREADY_DRAINING.value)
        assert on.claims.drain == before


@pytest.mark.parametrize(
    ("check", "expected"), [("Cpus >= 0", True), ("Cpus > 100", False), ("nowhere", False), ("error", False)]
)
async def test_a_check_must_hold_for_every_slot(check: str, expected: bool) -> None:
    async with port() as on:
        await on.claim()
        answer = await ask(on, Command.DRAIN_JOBS, HowFast=0, CheckExpr=ExprTree(check))
        assert answer["Result"] is expected
        assert (on.claims.drain is not None) is expected


@pytest.mark.parametrize(
    ("then", "expected"),
    [(Then.RESUME, "resumed"), (Then.RECONFIGURE, "reconfigured"), (Then.EXIT, "ended"), (Then.NOTHING, "drained")],
)
async def test_what_follows_when_nothing_is_left(then: Then, expected: str) -> None:
    async with port() as on:
        await on.claim()  # without a job: gone at once
        await ask(on, Command.DRAIN_JOBS, HowFast=0, ResumeOnCompletion=int(then))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not on.slots.held
        assert {
            "resumed": on.claims.takes_jobs and not on.reconfigured,
            "reconfigured": on.claims.takes_jobs and bool(on.reconfigured),
            "ended": on.ended == [("drained: by administrator", False)],
            "drained": not on.claims.takes_jobs and not on.ended,
        }[expected]


def test_numbers_that_stand_for_nothing_are_refused() -> None:
    ad = ClassAd()
    ad["HowFast"] = 7
    with pytest.raises(CannotDrain) as refused:
        parse(ad, "1")
    assert refused.value.refusal is Refusal.INVALID


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, "Cpus > 1"), ({"StartExpr": False}, "false"), ({"HowFast": 10}, ""), ({"HowFast": 20}, "")],
)
def test_a_requests_start_wins_over_the_settings(values: dict[str, object], expected: str) -> None:
    ad = ClassAd()
    ad.update(values)
    assert parse(ad, "1", "Cpus > 1").start == expected


def test_how_fast_says_what_a_claim_is_told() -> None:
    assert drain.event(HowFast.GRACEFUL, "r", 60.0) == Retire(60.0, "r", drain.CODE_DRAINING, Cause.DRAIN)
    assert drain.event(HowFast.QUICK, "r", 60.0) == Retire(0.0, "r", drain.CODE_DRAINING, Cause.DRAIN)
    assert drain.event(HowFast.FAST, "r", 60.0) == Shutdown(True, "r", drain.CODE_DRAINING)


# --- a drain that takes jobs to fill its time ----------------------------------------------------------------------


FILLER = parse_old(
    'RequestCpus = 1\nRequestMemory = 128\nRequestDisk = 1024\nRequirements = true\nUser = "bob@x"\nIsFiller = true\n'
)


@asynccontextmanager
async def draining(
    start: str = "IsFiller", *, left_s: float = 600.0, **more: object
) -> AsyncIterator[tuple[Port, Held]]:
    """A startd with one job, told to drain; the job has ``left_s`` left."""
    async with port() as on:
        before = await on.claim()
        on.claims.retirement_s = lambda held: left_s
        run_job(before)
        answer = await ask(on, Command.DRAIN_JOBS, **({"HowFast": 0, "StartExpr": ExprTree(start)} | more))
        assert answer["Result"] is True
        yield on, before


async def test_what_its_start_wants_is_taken_and_nothing_else() -> None:
    async with draining() as (on, before):
        assert await on.ask_claim(JOB) is None
        filler = await on.ask_claim(FILLER)
        assert filler is not None
        assert (before.life.state, filler.life.state) == (State.RETIRING, State.IDLE)
        assert on.held_ad(filler)["AcceptedWhileDraining"] is True
        assert on.held_ad(before)["AcceptedWhileDraining"] is False
        assert str(on.own_ad(on.slot).lookup("Start")) == "(IsFiller)"
        assert on.own_ad(on.slot)["State"] == "Drained"


@pytest.mark.parametrize("start", ["nowhere", "error", '"text"', "false", "Start", "isfiller && 1/0"])
async def test_a_start_that_is_not_true_takes_nothing(start: str) -> None:
    async with draining(start) as (on, before):
        assert await on.ask_claim(FILLER) is None
        assert list(on.slots.held.values()) == [before]


async def test_a_start_that_never_ends_its_evaluation_takes_nothing() -> None:
    """It is given up after some tens of milliseconds; the job's text is what it spins on."""
    spins = parse_old('RequestCpus = 1\nRequestMemory = 1\nRequestDisk = 1\nRequirements = true\nUser = "bob@x"\n')
    spins["Words"] = "a" * 60 + "!"
    async with draining('regexp("(a+)+$", TARGET.Words)') as (on, _before):
        assert await on.ask_claim(spins) is None


@pytest.mark.parametrize(
    "more",
    [{"HowFast": 10}, {"StartExpr": ExprTree("true && " * 600 + "true")}, {"StartExpr": "x" * 5000}],
    ids=["quick", "long", "long-text"],
)
async def test_no_filler_without_time_to_fill_or_by_what_is_too_long(more: dict[str, object]) -> None:
    async with port() as on:
        before = await on.claim()
        on.claims.retirement_s = lambda held: 600.0
        run_job(before)
        answer = await ask(on, Command.DRAIN_JOBS, **({"HowFast": 0, "StartExpr": True} | more))
        refused = "StartExpr" in more
        assert answer["Result"] is not refused
        assert on.claims.drain is None if refused else on.claims.drain_start == ""
        if refused:
            assert answer["ErrorCode"] == Refusal.INVALID.value
            assert before.life.state is State.BUSY


async def test_fillers_end_when_those_from_before_have_gone() -> None:
    async with draining(ResumeOnCompletion=int(Then.EXIT)) as (on, before):
        filler = await on.ask_claim(FILLER)
        assert filler is not None
        run_job(filler)
        on.claims.handle(before, StarterGone(0, broken=False))
        await until(on, filler, State.CLOSING)
        assert filler.life.ended is not None
        assert (filler.life.ended.how, filler.life.ended.vacate_code) == ("graceful", drain.CODE_DRAINING)
        assert await on.ask_claim(FILLER) is None, "the last phase takes no job"
        assert not on.ended
        on.claims.handle(filler, StarterGone(0, broken=False))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert on.ended == [("drained: by administrator", False)]


async def test_a_claim_that_waits_for_its_job_does_not_keep_a_drain_up() -> None:
    async with draining() as (on, before):
        assert await on.ask_claim(FILLER) is not None
        on.claims.handle(before, StarterGone(0, broken=False))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not on.slots.held


async def test_called_off_a_filler_is_a_job_like_others_and_counts_in_the_next_drain() -> None:
    async with draining() as (on, before):
        filler = await on.ask_claim(FILLER)
        assert filler is not None
        run_job(filler)
        await ask(on, Command.CANCEL_DRAIN_JOBS)
        await ask(on, Command.DRAIN_JOBS, HowFast=0, StartExpr=ExprTree("IsFiller"))
        on.claims.handle(before, StarterGone(0, broken=False))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert filler.life.state is State.RETIRING, "it has its retirement time"
        assert on.claims.drain_start


async def test_an_idle_startd_that_drains_has_no_time_to_fill() -> None:
    async with port() as on:
        await ask(on, Command.DRAIN_JOBS, HowFast=0, StartExpr=ExprTree("IsFiller"))
        assert await on.ask_claim(FILLER) is None


async def test_a_claim_whose_start_holds_no_more_gets_no_job() -> None:
    """What is activated is looked at again: the claim was taken for a filler."""
    async with draining() as (on, _before):
        filler = await on.ask_claim(FILLER)
        assert filler is not None
        reader = await on.say(Command.ACTIVATE_CLAIM, filler.claim_id, filler.claim_id.text, 0, JOB)
        assert reader is not None
        assert reader.int() == 0
        assert filler.life.state is State.IDLE


@pytest.mark.parametrize(
    ("left_s", "expected"), [([], ""), ([19.0], ""), ([0.0, 20.0], "IsFiller"), ([600.0, 1.0], "IsFiller")]
)
def test_time_to_fill_is_what_the_longest_has_left(left_s: list[float], expected: str) -> None:
    asked = drain.Drain("1", HowFast.GRACEFUL, Then.NOTHING, "r", start="IsFiller")
    assert drain.start_now(asked, left_s) == expected


@pytest.mark.parametrize("reason", ["retiring", "unhealthy", "draining"])
async def test_a_pilot_that_ends_takes_no_filler(reason: str) -> None:
    async with draining() as (on, _before):
        setattr(on.claims, reason, True if reason == "draining" else "so it is")
        assert await on.ask_claim(FILLER) is None


# --- the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slot1@node", "slot1_1@node"])
async def test_vacating_ends_the_slots_job(name: str) -> None:
    async with port() as on:
        held = await on.claim()
        run_job(held)
        await on.say(Command.VACATE_CLAIM, capability(on), name, answer=False)
        await until(on, held, State.CLOSING)


async def test_vacating_another_slot_ends_none() -> None:
    async with port() as on:
        held = await on.claim()
        run_job(held)
        await on.say(Command.VACATE_CLAIM_FAST, capability(on), "slot1_7@node", answer=False)
        await ask(on, Command.CANCEL_DRAIN_JOBS)  # served after it
        assert held.life.state is State.BUSY


NO_PAYLOAD = [Command.OFF_FAST, Command.OFF_PEACEFUL, Command.VACATE_ALL_CLAIMS, Command.RECONFIG]


async def done(on: Port, held: Held, command: Command) -> bool:
    """Whether a command without a payload has had its effect, once the port has nothing more to do."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    effects = {
        Command.VACATE_ALL_CLAIMS: held.life.state is State.CLOSING,
        Command.RECONFIG: bool(on.reconfigured),
    }
    return effects.get(command, bool(on.ended))


@pytest.mark.parametrize("command", NO_PAYLOAD)
async def test_a_capability_that_nobody_has_shown_yet_serves_without_a_payload(command: Command) -> None:
    async with port() as on:
        held = await on.claim()
        run_job(held)
        await on.say(command, capability(on), answer=False)
        assert await done(on, held, command)


@pytest.mark.parametrize("first", [Command.DRAIN_JOBS, Command.RECONFIG_FULL, Command.QUERY_STARTD_ADS])
@pytest.mark.parametrize("command", NO_PAYLOAD)
async def test_one_that_was_on_the_wire_does_not(first: Command, command: Command) -> None:
    """Its id goes in the clear, so from then on it is anybody's. What was refused has shown it, too."""
    async with port() as on:
        seen = capability(on)
        with suppress(PeerFault, Refused):
            await on.say(first, seen, *([ClassAd()] if first is Command.DRAIN_JOBS else []), answer=False)
        held = await on.claim() if first is not Command.DRAIN_JOBS else None
        on.reconfigured.clear()
        with pytest.raises(Refused, match="DENIED"):
            await on.say(command, seen)
        assert (on.ended, on.reconfigured) == ([], [])
        assert held is None or held.life.state is State.IDLE


async def test_a_used_capability_is_followed_by_another_at_once() -> None:
    async with port() as on:
        first = capability(on)
        await on.say(Command.VACATE_CLAIM, first, "slot1@node", answer=False)
        await trio.testing.wait_all_tasks_blocked(0.05)
        second = capability(on)
        assert second.session_id != first.session_id
        await on.say(Command.VACATE_CLAIM, first, "slot1@node", answer=False)  # with a payload it goes on to serve
        await on.say(Command.RECONFIG, second, answer=False)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert on.reconfigured == [None]


@pytest.mark.parametrize(
    ("command", "fast"),
    [(Command.DAEMON_OFF, False), (Command.DAEMON_OFF_FAST, True), (Command.DAEMON_OFF_PEACEFUL, False)],
)
async def test_off_by_name_ends_this_startd_and_no_other_daemon(command: Command, fast: bool) -> None:
    async with port() as on:
        with pytest.raises(PeerFault):
            await on.say(command, capability(on), "schedd")
        assert on.ended == []
        await on.say(command, capability(on), "STARTD", answer=False)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [is_fast for _, is_fast in on.ended] == [fast]
        peaceful = command is Command.DAEMON_OFF_PEACEFUL
        assert (on.administration.manner is Manner.PEACEFUL) is peaceful


@pytest.mark.parametrize("command", [Command.OFF_FAST, Command.VACATE_ALL_CLAIMS, Command.RECONFIG])
async def test_without_a_payload_a_session_proves_nothing(command: Command) -> None:
    """Whoever knows a session's id, which goes over the wire in the clear, could resume it without its key."""
    async with port() as on:
        held = await on.claim()
        run_job(held)
        somebody = another_id(capability(on))
        owner = somebody.session("somebody@x")
        owner.level, owner.commands = LEVEL, None
        on.slots.sessions.add(owner)
        with pytest.raises((PeerFault, Refused)):
            await on.say(command, somebody)
        assert (held.life.state, on.ended, on.reconfigured) == (State.BUSY, [], [])


@pytest.mark.parametrize("mine", [True, False], ids=["the pilot's account", "another account"])
async def test_only_the_pilots_own_account_may_end_its_startd(mine: bool) -> None:
    async with port(own_account=mine) as on:
        stream = None
        try:
            stream = await connect(on.address, Command.OFF_GRACEFUL, Negotiate(methods=("FS",)), subsystem="TOOL")
        except Refused:
            assert not mine
        if stream is not None:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert bool(on.ended) is mine


def test_a_running_startd_takes_over_policies_and_leaves_places() -> None:
    now = load(None, {})
    family = {**now.family, "SLOT_TYPE_1": "auto", "STARTD_CRON_A_PERIOD": "5"}
    read = attrs.evolve(now, start="Cpus > 1", num_cpus=7, claim_worklife=5.0, family=family)
    merged = merge(now, read)
    assert merged.taken == ("START", "CLAIM_WORKLIFE", "STARTD_CRON_A_PERIOD")
    assert merged.left == ("NUM_CPUS", "SLOT_TYPE_1")
    assert (merged.settings.start, merged.settings.num_cpus) == ("Cpus > 1", now.num_cpus)
    assert merged.settings.family == {**now.family, "STARTD_CRON_A_PERIOD": "5"}
    gone = merge(merged.settings, now)
    assert gone.taken == ("START", "CLAIM_WORKLIFE", "STARTD_CRON_A_PERIOD")
    assert gone.settings.family == now.family
    assert merge(now, now).taken == ()


def test_every_changeable_setting_is_one() -> None:
    assert set(attrs.asdict(load(None, {}), recurse=False)) >= CHANGEABLE
