"""Denied, or is the site down? How the credentials of one node stand with its identity switch. Pure: no I/O, no clock.

glexec says 203 for both, and 202 for much else. So a failed call proves nothing by itself. What decides:

* a credential is *refused* after PAIRS pairs in a row in which its own call failed and another one passed: the
  pilot's, which is asked for it, or any other credential's that happened to be used after the failure. The failures
  must be of one kind: a site that says now 202 and now 203 is out of order, whatever the pilot's luck;
* the site is *down* after DOWN_AFTER failures of the pilot's own call in a row, with no pass of anybody between;
* where the pilot's own call cannot pass (no proxy, or the site does not map pilots; known from validation) only
  other users can vouch for the site: at the end of the time budget a credential is refused if another passed
  meanwhile, and otherwise *unclear*.

Everybody on the node who makes calls (starters, procd, clean-ups, the startd's probe) shares one standing, so that
a refused user costs the site a bounded number of calls, whoever makes them. Times are seconds of one monotonic
clock of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import asdict, evolve, field, frozen

PAIRS = 4
DOWN_AFTER = 2
# A refused user is not tried again for so long; each further refusal doubles it. An administrator who has just
# authorised somebody is not to wait for hours.
MEMORY_S, LONGEST_MEMORY_S = 1800.0, 4 * 3600.0
# One that could not be judged is set aside for a shorter time.
ASIDE_S, LONGEST_ASIDE_S = 300.0, 3600.0
# Kill and clean-up of a refused user are tried now and then all the same: there is no other way to his files.
TRIAL_S, LONGEST_TRIAL_S = 60.0, 3600.0
# Between two looks at a site that is down.
LOOK_S, LONGEST_LOOK_S = 10.0, 600.0
# Turns of a credential in pairs grow slower, to this, where nobody can vouch for the site.
LONGEST_TURN_S = 300.0
# A row of failures that nobody has continued for so long says nothing any more.
STALE_S = 900.0
# While a site is down, others look into the standing this often; that costs no call.
WATCH_S = 1.0
MAX_CREDENTIALS = 100
# A pass that says nothing new is noted this often: it is for whom to forget, which is not worth a file a call.
NOTE_EVERY_S = 5.0
WORDS_CHARACTERS = 500

Verdict = Literal["", "refused", "unclear"]
# The switch itself said no (203); it is out of order (202, no answer); the call ended in a way without a meaning.
Kind = Literal["", "denied", "unavailable", "broken"]
# How calls are counted, for the report of a pilot: as single calls, whatever they turn out to mean together. Abandoned:
# the caller was told to end before the far side had spoken.
ENDS = ("passed", "denied", "unavailable", "misused", "broken", "abandoned")


@frozen
class Rules:
    """GLEXEC_RETRIES, GLEXEC_RETRY_DELAY."""

    retries: int
    delay_s: float

    @property
    def plain(self) -> int:
        """Calls before the pairs begin."""
        return self.retries + 1


@frozen
class Record:
    """One credential. `failures`: in a row; `pairs`: of these, in a row. `open`: a failed call that nobody's pass
    has been held against yet. `kind`: how the last one failed. `turn_s`: no call before.
    """

    identity: str = ""
    passed_s: float | None = None
    failures: int = 0
    first_failed_s: float = 0.0
    failed_s: float = 0.0
    pairs: int = 0
    open: bool = False
    kind: Kind = ""
    words: str = ""
    turn_s: float = 0.0
    verdict: Verdict = ""
    verdicts: int = 0
    until_s: float = 0.0
    trials: int = 0


@frozen
class Standing:
    """One node. `probe`: the pilot's own call can pass here; `lost`: it could, and may again. `down`: why the site is
    down; empty while it is not. `look_s`: when the pilot asks again, of a site that is down or a probe that is lost.
    """

    probe: bool = False
    lost: bool = False
    records: Mapping[str, Record] = field(factory=dict)
    pilot_failures: int = 0
    down: str = ""
    looks: int = 0
    look_s: float = 0.0
    times_down: int = 0


@frozen
class Wish:
    """A call that somebody wants, since `begun_s`, and gives up at `ends_s`.

    patient: of a job that has started: it waits for a site that is down, and tries now and then for a refused user.
    """

    begun_s: float
    ends_s: float
    patient: bool = False


@frozen
class Go:
    """Make the call."""


@frozen
class Wait:
    """Ask again after so many seconds."""

    seconds: float
    why: str = ""


@frozen
class Stop:
    """No call. `refused`: the credential is; otherwise the site is down, or nobody knows."""

    refused: bool
    text: str


Turn = Go | Wait | Stop


# -- before a call ----


def turn(standing: Standing, key: str, wish: Wish, rules: Rules, *, now_s: float, dice: float) -> tuple[Standing, Turn]:
    """Whether a call may be made for the credential now. dice: 0 to 1."""
    record = _record(standing, key)
    if _is_over(record, wish.patient, now_s):
        record = evolve(record, verdict="", failures=0, pairs=0, open=False, trials=0)
        standing = _with(standing, key, record)
    if record.verdict:
        return _turn_of_judged(standing, key, record, wish, now_s)
    if standing.down:
        return standing, _turn_while_down(standing, wish, now_s)
    if record.failures < rules.plain:
        return standing, Go() if record.turn_s <= now_s else Wait(record.turn_s - now_s, record.words)
    if now_s >= wish.ends_s and wish.patient:
        return standing, Stop(False, f"the site's authorisation did not let this user pass in time: {record.words}")
    if now_s >= wish.ends_s:
        standing = _judge_at_the_end(standing, key, wish.begun_s, now_s)
        return standing, _stop(_record(standing, key), now_s)
    if record.turn_s > now_s:
        return standing, Wait(min(record.turn_s, wish.ends_s) - now_s, record.words)
    beyond = max(0, record.failures - rules.plain - PAIRS)
    space_s = min(rules.delay_s * (1 + dice) * 2.0 ** min(beyond, 20), max(LONGEST_TURN_S, rules.delay_s))
    return _with(standing, key, evolve(record, turn_s=now_s + space_s)), Go()


def _is_over(record: Record, patient: bool, now_s: float) -> bool:
    """Whether a verdict has been remembered for long enough, or a row of failures was interrupted."""
    if record.verdict:
        return record.until_s <= now_s and not patient
    return record.failures > 0 and now_s - record.failed_s > STALE_S


def _turn_of_judged(standing: Standing, key: str, record: Record, wish: Wish, now_s: float) -> tuple[Standing, Turn]:
    due = record.turn_s <= now_s and not standing.down
    if wish.patient and not due and record.verdict == "unclear" and now_s < wish.ends_s:
        return standing, Wait(min(WATCH_S, wish.ends_s - now_s), record.words)
    if not wish.patient or not due:
        return standing, _stop(record, now_s)
    pause_s = min(TRIAL_S * 2.0 ** min(record.trials, 20), LONGEST_TRIAL_S)
    return _with(standing, key, evolve(record, turn_s=now_s + pause_s, trials=record.trials + 1)), Go()


def _turn_while_down(standing: Standing, wish: Wish, now_s: float) -> Turn:
    if wish.patient and now_s < wish.ends_s:
        return Wait(min(WATCH_S, wish.ends_s - now_s), standing.down)
    return Stop(False, f"the site's authorisation is down: {standing.down}")


def _stop(record: Record, now_s: float) -> Stop:
    left = f" It is tried again in {_minutes(record.until_s - now_s)}."
    words = record.words or "nothing"
    if record.verdict == "refused" and record.kind == "denied":
        return Stop(True, words)
    if record.verdict == "refused":
        return Stop(True, f"no word of a refusal, but every call for this user failed while others passed: {words}")
    return Stop(False, f"either the site refuses this user, or its authorisation is down: {words}.{left}")


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


# -- after a call ----


def failed(
    standing: Standing, key: str, *, identity: str, words: str, kind: Kind, now_s: float, rules: Rules, dice: float
) -> Standing:
    """A call for the credential failed for a reason that may pass.

    Before a plain retry there is a pause, drawn evenly up to GLEXEC_RETRY_DELAY ("full jitter").
    """
    record = _record(standing, key)
    if record.verdict:
        return standing
    failures = record.failures + 1
    record = evolve(
        record,
        identity=identity,
        failures=failures,
        first_failed_s=record.first_failed_s if record.failures else now_s,
        failed_s=now_s,
        open=failures > rules.plain,
        kind=kind,
        pairs=record.pairs if kind == record.kind else 0,
        words=words[:WORDS_CHARACTERS],
        turn_s=now_s + dice * rules.delay_s if failures <= rules.plain else record.turn_s,
    )
    return _with(standing, key, record)


def set_aside(standing: Standing, key: str, *, identity: str, words: str, now_s: float) -> Standing:
    """A call for the credential came to something that no further call changes, and that nobody can be blamed for."""
    record = evolve(_record(standing, key), identity=identity, words=words[:WORDS_CHARACTERS])
    return _with(standing, key, record if record.verdict else _judged(record, "unclear", now_s))


def passed(standing: Standing, key: str, *, identity: str, now_s: float) -> Standing:
    """A call for the credential passed: it is not refused, the site is up, and that is held against the others."""
    if _is_known(standing, key, now_s):
        return standing
    standing = _site_passed(standing, but=key, now_s=now_s)
    return _with(standing, key, Record(identity=identity, passed_s=now_s))


def _is_known(standing: Standing, key: str, now_s: float) -> bool:
    """Whether it passed a moment ago, and nobody's failure waits for a pass: a later one counts later passes only."""
    trouble = standing.down or standing.lost or standing.pilot_failures
    if trouble or any(record.failures or record.verdict for record in standing.records.values()):
        return False
    passed_s = _record(standing, key).passed_s
    return passed_s is not None and 0 <= now_s - passed_s < NOTE_EVERY_S


def pilot_passed(standing: Standing, *, now_s: float) -> Standing:
    """The pilot's own call passed."""
    standing = evolve(standing, probe=standing.probe or standing.lost, lost=False)
    return _site_passed(standing, but=None, now_s=now_s)


def pilot_failed(standing: Standing, *, words: str, now_s: float, dice: float) -> Standing:
    """The pilot's own call failed. That breaks every row of pairs; twice in a row means that the site is down."""
    if not standing.probe:
        return evolve(standing, look_s=now_s + LONGEST_LOOK_S)
    records = {key: _unpaired(record) for key, record in standing.records.items()}
    failures = standing.pilot_failures + 1
    standing = evolve(standing, records=records, pilot_failures=failures)
    if failures < DOWN_AFTER:
        return standing
    pause_s = min(LOOK_S * 2.0 ** min(standing.looks, 20), LONGEST_LOOK_S) * (0.5 + dice / 2)
    return evolve(
        standing,
        down=words[:WORDS_CHARACTERS] or "its tool failed without a word",
        looks=standing.looks + 1,
        look_s=now_s + pause_s,
        times_down=standing.times_down + (not standing.down),
    )


def pilot_unusable(standing: Standing, *, now_s: float) -> Standing:
    """The pilot's own call cannot pass now, whatever the site does (its proxy is over, until it is renewed)."""
    lost = standing.probe or standing.lost
    look_s = now_s + LONGEST_LOOK_S
    return evolve(standing, probe=False, lost=lost, pilot_failures=0, down="", looks=0, look_s=look_s)


def asks_again(standing: Standing, *, now_s: float) -> bool:
    """Whether a call on the pilot's own behalf is due, to see whether it passes again."""
    return bool(standing.down or standing.lost) and now_s >= standing.look_s


def needs_pilot(standing: Standing, key: str) -> bool:
    """Whether the pilot's own call is wanted for the credential's last failure."""
    return standing.probe and not standing.down and _record(standing, key).open


def in_doubt(standing: Standing, key: str) -> bool:
    """Whether calls for the credential fail now, for whatever reason."""
    record = _record(standing, key)
    return bool(standing.down or record.verdict or record.failures)


def refused(standing: Standing, *, now_s: float) -> tuple[str, ...]:
    """Identities that are not to match here now."""
    found = {record.identity for record in standing.records.values() if record.verdict and record.until_s > now_s}
    return tuple(sorted(found - {""}))


def _site_passed(standing: Standing, *, but: str | None, now_s: float) -> Standing:
    records = {key: record if key == but else _paired(record, now_s) for key, record in standing.records.items()}
    look_s = standing.look_s if standing.lost else 0.0
    return evolve(standing, records=records, pilot_failures=0, down="", looks=0, look_s=look_s)


def _paired(record: Record, now_s: float) -> Record:
    if not record.open or record.verdict:
        return record
    record = evolve(record, open=False, pairs=record.pairs + 1)
    return _judged(record, "refused", now_s) if record.pairs >= PAIRS else record


def _unpaired(record: Record) -> Record:
    return record if record.verdict else evolve(record, open=False, pairs=0)


def _judge_at_the_end(standing: Standing, key: str, begun_s: float, now_s: float) -> Standing:
    """The time budget is over without a verdict."""
    record = _record(standing, key)
    since_s = max(begun_s, record.first_failed_s)
    others = [r.passed_s for k, r in standing.records.items() if k != key and r.passed_s is not None]
    vouched = not standing.probe and any(passed_s >= since_s for passed_s in others)
    return _with(standing, key, _judged(record, "refused" if vouched else "unclear", now_s))


def _judged(record: Record, verdict: Verdict, now_s: float) -> Record:
    first_s, longest_s = (MEMORY_S, LONGEST_MEMORY_S) if verdict == "refused" else (ASIDE_S, LONGEST_ASIDE_S)
    memory_s = min(first_s * 2.0 ** min(record.verdicts, 20), longest_s)
    return evolve(
        record,
        verdict=verdict,
        verdicts=record.verdicts + 1,
        until_s=now_s + memory_s,
        turn_s=now_s + TRIAL_S,
        open=False,
    )


# -- as values ----


def _worth(record: Record) -> tuple[bool, float]:
    """What is forgotten first is what has been quiet longest; refusals last."""
    return record.verdict != "", max(record.passed_s or 0.0, record.failed_s)


def _record(standing: Standing, key: str) -> Record:
    return standing.records.get(key, Record())


def _with(standing: Standing, key: str, record: Record) -> Standing:
    records = {other: kept for other, kept in standing.records.items() if other != key}
    while len(records) >= MAX_CREDENTIALS:  # who has been quiet longest; never one that is refused, if there is another
        del records[min(records, key=lambda other: _worth(records[other]))]
    return evolve(standing, records={**records, key: record})


def as_plain(standing: Standing) -> dict[str, Any]:
    """For JSON."""
    return asdict(standing)


def from_plain(value: Any) -> Standing:
    """The reverse; TypeError or AttributeError for anything else."""
    records = {key: Record(**record) for key, record in value["records"].items()}
    return Standing(**{**value, "records": records})
