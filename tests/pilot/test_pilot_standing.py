"""Denied or down: what a row of answers means, in any order; and what a refused user costs the site."""

from __future__ import annotations

import fcntl
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot import standing
from pilot.inquiry import Patience, Whose, ask_pilot, inquire, note_pilot
from pilot.ledger import Ledger, identity_of, note_identity
from pilot.outcomes import Broken, Denied, Exited, Misused, Outcome, Signalled, Unavailable
from pilot.standing import Go, Rules, Standing, Stop, Wait, Wish
from pilot.switch import GlexecSwitch

RULES = Rules(retries=3, delay_s=5.0)
USER, OTHER = "user", "other"
SOON = Wish(begun_s=0.0, ends_s=1e9)


# -- the decider ----


def test_a_pass_that_says_nothing_new_is_noted_now_and_then() -> None:
    first = standing.passed(Standing(probe=True), USER, identity=USER, now_s=100.0)
    assert standing.passed(first, USER, identity=USER, now_s=100.1) is first
    later = standing.passed(first, USER, identity=USER, now_s=100.0 + standing.NOTE_EVERY_S)
    assert later.records[USER].passed_s == 100.0 + standing.NOTE_EVERY_S


def test_a_pass_is_noted_at_once_while_another_credential_fails() -> None:
    first = standing.passed(Standing(probe=True), USER, identity=USER, now_s=100.0)
    doubt = fail(first, OTHER, now_s=100.1)
    assert standing.passed(doubt, USER, identity=USER, now_s=100.2).records[USER].passed_s == 100.2


def test_a_pass_is_noted_at_once_while_the_pilot_fails() -> None:
    first = standing.passed(Standing(probe=True), USER, identity=USER, now_s=100.0)
    doubt = standing.pilot_failed(first, words="no", now_s=100.1, dice=0.0)
    assert standing.passed(doubt, USER, identity=USER, now_s=100.2).pilot_failures == 0


def fail(now: Standing, key: str = USER, *, now_s: float = 0.0, kind: standing.Kind = "denied") -> Standing:
    return standing.failed(now, key, identity=key, words="no", kind=kind, now_s=now_s, rules=RULES, dice=0.0)


def failing(times: int, now: Standing | None = None) -> Standing:
    now = now or Standing(probe=True)
    for _ in range(times):
        now = fail(now)
    return now


def turn(now: Standing, key: str = USER, wish: Wish = SOON, *, now_s: float = 0.0) -> standing.Turn:
    return standing.turn(now, key, wish, RULES, now_s=now_s, dice=0.0)[1]


def test_four_pairs_in_a_row_are_a_refusal_and_three_are_not() -> None:
    now = failing(RULES.plain)
    for pair in range(1, standing.PAIRS + 1):
        now = standing.pilot_passed(fail(now), now_s=0.0)
        assert isinstance(turn(now, now_s=1e6 if pair < 4 else 1.0), Stop if pair == 4 else Go)
    assert turn(now, now_s=1.0) == Stop(True, "no")
    assert standing.refused(now, now_s=1.0) == (USER,)
    assert standing.refused(now, now_s=standing.MEMORY_S) == ()


def test_a_failure_of_the_pilot_breaks_the_row() -> None:
    now = failing(RULES.plain)
    for _ in range(3):
        now = standing.pilot_passed(fail(now), now_s=0.0)
    now = standing.pilot_failed(fail(now), words="", now_s=0.0, dice=0.0)
    for _ in range(3):
        now = standing.pilot_passed(fail(now), now_s=0.0)
    assert now.records[USER].verdict == ""


def test_failures_of_two_kinds_are_no_row() -> None:
    now = failing(RULES.plain)
    for kind in ("denied", "denied", "denied", "unavailable", "denied", "denied", "denied"):
        now = standing.pilot_passed(fail(now, kind=kind), now_s=0.0)
    assert now.records[USER].verdict == ""
    assert standing.pilot_passed(fail(now), now_s=0.0).records[USER].verdict == "refused"


def test_a_pass_of_the_user_clears_it() -> None:
    now = failing(RULES.retries + 3)
    now = standing.passed(now, USER, identity=USER, now_s=0.0)
    assert now.records[USER].failures == 0
    assert turn(now) == Go()


def test_two_failures_of_the_pilot_in_a_row_mean_down_and_any_pass_means_up() -> None:
    now = standing.pilot_failed(Standing(probe=True), words="503", now_s=0.0, dice=0.0)
    assert turn(now) == Go()
    now = standing.pilot_failed(now, words="503", now_s=0.0, dice=0.0)
    assert turn(now) == Stop(False, "the site's authorisation is down: 503")
    assert isinstance(turn(now, wish=Wish(0.0, 100.0, patient=True)), Wait)
    assert turn(standing.passed(now, OTHER, identity=OTHER, now_s=1.0)) == Go()
    assert turn(standing.pilot_passed(now, now_s=1.0)) == Go()


def test_a_pass_of_another_user_counts_as_the_pilots() -> None:
    now = failing(RULES.plain, Standing(probe=False))
    for _ in range(standing.PAIRS):
        now = standing.passed(fail(now), OTHER, identity=OTHER, now_s=0.0)
    assert turn(now, now_s=1.0) == Stop(True, "no")


def test_a_pass_counts_for_one_failure_only() -> None:
    now = fail(failing(RULES.plain))
    for _ in range(10):
        now = standing.pilot_passed(now, now_s=0.0)
    assert now.records[USER].pairs == 1


@pytest.mark.parametrize(("passed_s", "refused"), [(None, False), (5.0, False), (15.0, True)])
def test_without_the_pilot_only_another_users_pass_meanwhile_makes_it_a_refusal(
    passed_s: float | None, refused: bool
) -> None:
    now = Standing(probe=False)
    if passed_s == 5.0:
        now = standing.passed(now, OTHER, identity=OTHER, now_s=5.0)
    for at_s in range(10, 10 + RULES.retries + 2):
        now = fail(now, now_s=float(at_s))
    if passed_s == 15.0:
        now = standing.passed(now, OTHER, identity=OTHER, now_s=15.0)
    answer = turn(now, wish=Wish(9.0, 130.0), now_s=130.0)
    assert isinstance(answer, Stop)
    assert answer.refused == refused


def test_pairs_are_spaced_and_the_next_call_is_one_jobs_alone() -> None:
    now = failing(RULES.plain + 1)
    now, first = standing.turn(now, USER, SOON, RULES, now_s=100.0, dice=0.5)
    assert first == Go()
    assert turn(now, now_s=100.0) == Wait(pytest.approx(7.5), "no")


def test_a_refused_user_of_a_running_job_is_tried_ever_more_rarely() -> None:
    now = failing(RULES.plain)
    for _ in range(standing.PAIRS):
        now = standing.pilot_passed(fail(now), now_s=0.0)
    calls = 0
    for second in range(3600):
        now, answer = standing.turn(now, USER, Wish(0.0, 1e9, patient=True), RULES, now_s=float(second), dice=0.0)
        calls += answer == Go()
    assert calls == 6  # after 60, 120, 240, 480, 960, 1,920 s


def test_an_old_row_of_failures_says_nothing() -> None:
    now = failing(RULES.retries + 3)
    now, answer = standing.turn(now, USER, SOON, RULES, now_s=standing.STALE_S + 1, dice=0.0)
    assert answer == Go()
    assert now.records[USER].failures == 0


def test_looks_at_a_site_that_is_down_grow_apart() -> None:
    now, at_s, gaps = Standing(probe=True), 0.0, []
    for _ in range(12):
        now = standing.pilot_failed(now, words="", now_s=at_s, dice=1.0)
        gaps.append(now.look_s - at_s)
        at_s = max(at_s, now.look_s)
    assert gaps[1:5] == [10, 20, 40, 80]
    assert gaps[-1] == standing.LONGEST_LOOK_S


EVENTS = st.sampled_from(["user", "other", "third", "user+", "other+", "pilot", "pilot+"])


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=60), st.booleans())
def test_whatever_comes_no_user_is_refused_without_four_passes_of_others_after_its_failures(
    events: list[str], probe: bool
) -> None:
    now, witnessed, open_, failures = Standing(probe=probe), 0, False, 0
    for at_s, event in enumerate(events):
        if event == "pilot+":
            now = standing.pilot_passed(now, now_s=at_s)
        elif event == "pilot":
            now = standing.pilot_failed(now, words="", now_s=at_s, dice=0.0)
        elif event.endswith("+"):
            now = standing.passed(now, event[:-1], identity=event, now_s=at_s)
        else:
            now = fail(now, event, now_s=at_s)
        if event == "user+":
            witnessed, open_, failures = 0, False, 0
        elif event == "user":
            failures += 1
            open_ = failures > RULES.plain
        elif event in ("pilot+", "other+"):
            witnessed, open_ = witnessed + open_, False
        elif event == "pilot":
            witnessed, open_ = (witnessed, False) if now.records.get(USER, standing.Record()).verdict else (0, False)
        record = now.records.get(USER, standing.Record())
        assert (record.verdict == "refused") == (witnessed >= standing.PAIRS)
        assert not (now.down and event in ("pilot+", "other+", "user+"))
        assert standing.from_plain(json.loads(json.dumps(standing.as_plain(now)))) == now


def test_many_credentials_do_not_fill_the_memory_and_refusals_stay_longest() -> None:
    now = failing(RULES.plain)
    for _ in range(standing.PAIRS):
        now = standing.pilot_passed(fail(now), now_s=0.0)
    for number in range(3 * standing.MAX_CREDENTIALS):
        now = standing.passed(now, f"u{number}", identity="", now_s=float(number))
    assert len(now.records) == standing.MAX_CREDENTIALS
    assert now.records[USER].verdict == "refused"


def test_a_pilot_whose_proxy_was_over_vouches_again_when_it_passes() -> None:
    now = standing.pilot_failed(Standing(probe=True), words="", now_s=0.0, dice=0.0)
    now = standing.pilot_unusable(now, now_s=0.0)
    assert (now.probe, now.down, now.pilot_failures) == (False, "", 0)
    assert not standing.asks_again(now, now_s=1.0)
    now = standing.passed(now, OTHER, identity=OTHER, now_s=1.0)
    assert not standing.asks_again(now, now_s=1.0), "another's pass says nothing about the pilot's proxy"
    at_s = standing.LONGEST_LOOK_S
    assert standing.asks_again(now, now_s=at_s)
    for _ in range(3):  # a failure is no sign that the site is down
        now = standing.pilot_failed(now, words="", now_s=at_s, dice=0.0)
    assert now.down == ""
    assert not standing.asks_again(now, now_s=at_s + 1)
    now = standing.pilot_passed(now, now_s=at_s)
    assert (now.probe, now.lost) == (True, False)
    assert not standing.asks_again(now, now_s=1e9)
    never = standing.pilot_unusable(Standing(probe=False), now_s=0.0)
    assert not standing.asks_again(never, now_s=1e9), "a site that never mapped the pilot is not asked"


# -- a site in virtual time ----


@define
class Site:
    """A switch of which nothing is real: who is banned, how often a call fails by chance, when all do."""

    ledger: Ledger
    banned: tuple[str, ...] = ()
    chance: float = 0.0
    down: Callable[[float], bool] = lambda now_s: False
    maps_pilot: bool = True
    takes_s: float = 0.05
    dice: random.Random = field(factory=lambda: random.Random(1))
    calls: list[tuple[float, str]] = field(factory=list)

    async def call(self, who: str) -> str | Outcome:
        self.calls.append((trio.current_time(), who))
        await trio.sleep(self.takes_s)
        if self.dice.random() < self.chance or self.down(trio.current_time()):
            return Denied("try later") if self.dice.random() < 0.5 else Unavailable("try later")
        if who in self.banned or (who == "pilot" and not self.maps_pilot):
            return Denied("not authorised")
        return Exited(0) if who == "pilot" else f"hello {who}"

    async def ask(self, who: str, *, seconds: float = 120.0, waits: bool = False) -> str | Outcome:
        return await inquire(
            lambda: self.call(who),
            lambda: self.call("pilot"),
            Whose(who, who),
            RULES,
            Patience(self.ledger, seconds, waits=waits),
            dice=self.dice.random,
        )

    def number_of(self, who: str) -> int:
        return sum(caller == who for _, caller in self.calls)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.of(tmp_path)
    made.clock = trio.current_time
    made.begin(probe=True)
    return made


async def test_a_banned_user_is_refused_after_eight_calls_and_four_of_the_pilots(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    site = Site(ledger, banned=("mallory",))
    assert await site.ask("mallory") == Denied("not authorised")
    assert (site.number_of("mallory"), site.number_of("pilot")) == (8, 4)
    assert await site.ask("mallory") == Denied("not authorised")
    assert len(site.calls) == 12
    assert await site.ask("alice") == "hello alice"


async def test_a_site_that_is_down_refuses_nobody_and_is_asked_no_more(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    site = Site(ledger, down=lambda now_s: True)
    assert isinstance(await site.ask("alice"), Unavailable)
    assert isinstance(await site.ask("bob"), Unavailable)
    assert site.number_of("bob") == 0
    assert site.number_of("pilot") == standing.DOWN_AFTER


async def test_a_job_that_has_started_waits_for_the_site_to_come_back(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    began_s = trio.current_time()
    site = Site(ledger, down=lambda now_s: now_s < began_s + 5000)

    async def probe() -> None:
        while True:
            now = ledger.read()
            if now.down and ledger.clock() >= now.look_s:
                await note_pilot(ledger, await site.call("pilot"), 0.5)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        assert await site.ask("alice", seconds=20_000, waits=True) == "hello alice"
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began_s < 5000 + standing.LONGEST_LOOK_S + 10
    assert len(site.calls) < 40


async def test_a_job_that_has_started_gives_up_at_its_proxys_end(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    began_s = trio.current_time()
    site = Site(ledger, down=lambda now_s: True)
    assert isinstance(await site.ask("alice", seconds=3600, waits=True), Unavailable)
    assert trio.current_time() - began_s == pytest.approx(3600, abs=10)
    assert standing.refused(ledger.read(), now_s=ledger.clock()) == ()


@pytest.mark.parametrize("alice_runs", [True, False])
async def test_where_the_pilot_is_not_mapped_only_another_user_can_vouch(
    ledger: Ledger, autojump_clock: trio.testing.MockClock, alice_runs: bool
) -> None:
    ledger.begin(probe=False)
    site = Site(ledger, banned=("mallory",), maps_pilot=False)
    answers: list[str | Outcome] = []

    async def mallory() -> None:
        answers.append(await site.ask("mallory"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mallory)
        await trio.sleep(60)
        if alice_runs:
            assert await site.ask("alice") == "hello alice"
    assert isinstance(answers[0], Denied if alice_runs else Unavailable)
    assert site.number_of("pilot") == 0
    assert site.number_of("mallory") <= 20
    assert standing.refused(ledger.read(), now_s=ledger.clock()) == ("mallory",)


async def test_eight_jobs_of_a_refused_user_share_one_row(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    site = Site(ledger, banned=("mallory",))
    answers: list[str | Outcome] = []

    async def job() -> None:
        answers.append(await site.ask("mallory"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(job)
    assert answers == [Denied("not authorised")] * 8
    assert site.number_of("mallory") <= 8 + RULES.plain + standing.PAIRS
    assert site.number_of("pilot") <= 4 + 8


HOUR_S = 3600.0
# What docs/denied-or-down.md says.
CALLS_AN_HOUR = 24


@pytest.mark.parametrize("seed", range(3))
async def test_an_hour_of_resubmission_by_a_refused_user_costs_the_site_a_bounded_number_of_calls(
    ledger: Ledger, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Every second another job, whatever the slot's START says."""
    began_s = trio.current_time()
    site = Site(ledger, banned=("mallory",), dice=random.Random(seed))
    jobs = 0
    while trio.current_time() < began_s + HOUR_S:
        assert isinstance(await site.ask("mallory"), Denied)
        jobs += 1
        await trio.sleep(1)
    assert jobs > 3000
    assert len(site.calls) == CALLS_AN_HOUR


async def jobs_of(site: Site, who: str, number: int, ends: dict[str, str], slots: trio.CapacityLimiter) -> None:
    """Jobs of three calls each; one that the site was at fault for is tried again, as a queue does."""

    async def job(name: str) -> None:
        async with slots:
            while name not in ends:
                for call in range(3):
                    answer = await site.ask(who, seconds=120 if call < 2 else 40_000, waits=call == 2)
                    if isinstance(answer, Denied):
                        ends[name] = "held"
                    if not isinstance(answer, str):
                        await trio.sleep(30)
                        break
                else:
                    ends[name] = "done"

    async with trio.open_nursery() as nursery:
        for each in range(number):
            nursery.start_soon(job, f"{who}{each}")


async def play(site: Site, ledger: Ledger, jobs: dict[str, int]) -> dict[str, str]:
    ends: dict[str, str] = {}
    slots = trio.CapacityLimiter(8)

    async def probe() -> None:
        while True:
            now = ledger.read()
            if now.down and ledger.clock() >= now.look_s:
                await note_pilot(ledger, await site.call("pilot"), site.dice.random())
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        async with trio.open_nursery() as queue:
            for who, number in jobs.items():
                queue.start_soon(jobs_of, site, who, number, ends, slots)
        nursery.cancel_scope.cancel()
    return ends


@pytest.mark.parametrize("seed", range(3))
async def test_of_200_jobs_none_is_lost_or_held_when_a_third_of_all_calls_fail(
    ledger: Ledger, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    site = Site(ledger, chance=0.3, dice=random.Random(seed))
    ends = await play(site, ledger, {"alice": 100, "bob": 100})
    assert len(ends) == 200
    assert set(ends.values()) == {"done"}


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_with_a_banned_user_among_them_holds_that_users_jobs_only(
    ledger: Ledger, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    site = Site(ledger, chance=0.3, banned=("mallory",), dice=random.Random(seed))
    ends = await play(site, ledger, {"alice": 90, "bob": 90, "mallory": 20})
    assert {name for name, end in ends.items() if end == "held"} == {f"mallory{n}" for n in range(20)}
    assert len(ends) == 200
    # Chance decides when four pairs come in a row: 130 to 251 in a hundred plays, of 20 jobs in eight slots.
    assert site.number_of("mallory") <= 400


async def test_a_tool_that_cannot_be_started_is_the_nodes_fault(
    ledger: Ledger, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """No more processes, or the tool is gone: no user is set aside for it, and the node is back when it is."""
    switch = GlexecSwitch(tmp_path / "glexec", None)
    call = partial(ask_pilot, switch, 5.0)
    answer = await inquire(call, call, Whose("u", "/CN=U"), RULES, Patience(ledger, 120.0))
    assert isinstance(answer, Unavailable)
    now = ledger.read()
    assert standing.refused(now, now_s=ledger.clock()) == ()
    assert "cannot start glexec" in now.down
    assert now.probe


async def test_what_no_retry_helps_is_not_retried_and_sets_the_user_aside(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    calls = 0

    async def misuse() -> Outcome:
        nonlocal calls
        calls += 1
        return Misused("maps this user to root")

    async def pilot() -> Outcome:
        raise AssertionError("nobody asked for the pilot")

    for expected in (Misused, Unavailable, Unavailable):
        answer = await inquire(misuse, pilot, Whose("u", "/CN=U"), RULES, Patience(ledger, 120.0))
        assert isinstance(answer, expected)
    assert calls == 1
    assert standing.refused(ledger.read(), now_s=ledger.clock()) == ("/CN=U",)


async def test_a_user_whose_calls_only_break_is_held_in_words_that_fit(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    async def broken() -> Outcome:
        return Broken("exit status 127 before the wrapper spoke")

    async def pilot() -> Outcome:
        return Exited(0)

    answer = await inquire(broken, pilot, Whose("u", "/CN=U"), RULES, Patience(ledger, 600.0))
    assert isinstance(answer, Denied)
    assert "no word of a refusal" in answer.text
    assert "127" in answer.text


async def test_a_call_that_nothing_depends_on_is_made_once(
    ledger: Ledger, autojump_clock: trio.testing.MockClock
) -> None:
    site = Site(ledger, banned=("mallory",))
    patience = Patience(ledger, 120.0, once=True)
    answer = await inquire(
        lambda: site.call("mallory"), lambda: site.call("pilot"), Whose("mallory", ""), RULES, patience
    )
    assert answer == Denied("not authorised")
    assert len(site.calls) == 1


# -- the file ----


def test_the_standing_is_the_pilots_alone_and_a_broken_one_is_an_empty_one(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.begin(probe=True)
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.read() == Standing(probe=True)
    for broken in (b"", b"{", b"[]", b'{"records": 3}', b'{"records": {"a": {"x": 1}}}', b"[" * 100_000):
        ledger.path.write_bytes(broken)
        assert ledger.read() == Standing()


async def test_who_holds_the_lock_for_ever_stops_nobody(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.begin(probe=True)
    with (tmp_path / "standing.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        passed = await ledger.change(lambda now, now_s: (standing.passed(now, "u", identity="", now_s=now_s), "result"))
    assert passed == "result"
    assert ledger.read() == Standing(probe=True)


def test_calls_are_counted_by_many_at_once_and_by_their_ends(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    ledger.begin(probe=True)
    with ThreadPoolExecutor(8) as several:
        for end in standing.ENDS:
            for _ in range(50):
                several.submit(Ledger.of(tmp_path).count, end)
        several.submit(ledger.count, "denied")
    assert ledger.counts() == {**dict.fromkeys(standing.ENDS, 50), "denied": 51}
    assert (tmp_path / "switch-calls").stat().st_mode & 0o777 == 0o600
    ledger.begin(probe=True)
    assert ledger.counts() == dict.fromkeys(standing.ENDS, 0)


def test_a_count_that_cannot_be_written_costs_no_call(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path / "not there")
    ledger.count("passed")
    assert ledger.counts() == dict.fromkeys(standing.ENDS, 0)


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        (Exited(0), "passed"), (Exited(1), "broken"), (Signalled(9), "broken"), (Denied("no"), "denied"),
        (Unavailable("503"), "unavailable"), (Misused("root"), "misused"), (Broken("127"), "broken"),
    ],
)  # fmt: skip
async def test_each_call_of_the_pilots_own_is_counted(ledger: Ledger, outcome: Outcome, end: str) -> None:
    await note_pilot(ledger, outcome, 0.0)
    assert ledger.counts() == {**dict.fromkeys(standing.ENDS, 0), end: 1}


def test_whose_a_credential_is_stands_beside_it(tmp_path: Path) -> None:
    proxy = tmp_path / "proxy.pem"
    assert identity_of(proxy) == (str(proxy), "")
    note_identity(proxy, "/CN=Alice", "/vo/Role=pilot")
    key, identity = identity_of(proxy)
    assert identity == "/CN=Alice"
    note_identity(proxy, "/CN=Alice", "/vo")
    assert identity_of(proxy)[0] != key
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600
