"""What administrators may ask of a startd, and that nobody else may."""

from __future__ import annotations

from contextlib import suppress

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd, ExprTree

from cedar.claims import ClaimId
from cedar.classads import get_str
from cedar.client import Negotiate, connect
from cedar.codec import Item
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from pilot.configuration import load
from startd import drain
from startd.administration import LEVEL, Manner
from startd.claim import State
from startd.claimevents import Activate, Cause, Retire, Shutdown, StarterRuns
from startd.drain import CannotDrain, HowFast, Refusal, Then, parse
from startd.held import Held
from startd.reconfigure import CHANGEABLE, merge
from tests.startd.startdport import Port, guessed, port, state


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
    with trio.fail_after(5):
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


def test_how_fast_says_what_a_claim_is_told() -> None:
    assert drain.event(HowFast.GRACEFUL, "r", 60.0) == Retire(60.0, "r", drain.CODE_DRAINING, Cause.DRAIN)
    assert drain.event(HowFast.QUICK, "r", 60.0) == Retire(0.0, "r", drain.CODE_DRAINING, Cause.DRAIN)
    assert drain.event(HowFast.FAST, "r", 60.0) == Shutdown(True, "r", drain.CODE_DRAINING)


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
