"""When a pilot takes no more jobs, and when it ends by itself."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path

import attrs
import pytest
from classad2 import ClassAd, ExprTree
from hypothesis import given
from hypothesis import strategies as st

from cedar import tokens
from demo.grid import make_grid, make_proxy, write_private
from startd.lifetime import GO_ON, RULES, Decision, Facts, Limits, Wish, decide, retirement_s
from startd.owncredentials import OwnCredentials

NOW = 1_000_000.0
BUSY, IDLE = Facts(NOW, claims=1, idle_s=0), Facts(NOW, claims=0, idle_s=50)


@pytest.mark.parametrize(
    ("limits", "facts", "expected"),
    [
        (Limits(), BUSY, Wish.GO_ON),
        (Limits(), attrs.evolve(IDLE, idle_s=1e9), Wish.GO_ON),
        (Limits(), attrs.evolve(BUSY, shutdown=True), Wish.END_GRACEFULLY),
        (Limits(), attrs.evolve(BUSY, shutdown=True, shutdown_fast=True), Wish.END_FAST),
        (Limits(die_at=NOW), BUSY, Wish.END_GRACEFULLY),
        (Limits(die_at=NOW + 1), BUSY, Wish.GO_ON),
        (Limits(retire_at=NOW), BUSY, Wish.RETIRE),
        (Limits(retire_at=NOW), IDLE, Wish.END_GRACEFULLY),
        (Limits(retire_at=NOW + 1), IDLE, Wish.GO_ON),
        (Limits(retire_at=NOW, die_at=NOW), BUSY, Wish.END_GRACEFULLY),
        (Limits(noclaim_s=50), IDLE, Wish.END_GRACEFULLY),
        (Limits(noclaim_s=51), IDLE, Wish.GO_ON),
        (Limits(noclaim_s=1), attrs.evolve(BUSY, idle_s=5), Wish.GO_ON),
        (Limits(credential_margin_s=10), attrs.evolve(BUSY, credential_ends_at=NOW + 10), Wish.END_GRACEFULLY),
        (Limits(credential_margin_s=10), attrs.evolve(BUSY, credential_ends_at=NOW + 11), Wish.GO_ON),
    ],
)
def test_the_first_rule_that_holds_decides(limits: Limits, facts: Facts, expected: Wish) -> None:
    decision = decide(limits, facts)
    assert decision.wish is expected
    assert bool(decision.reason) == (decision != GO_ON)


times = st.one_of(st.none(), st.floats(0, 2e6))


@given(
    st.builds(
        Limits, retire_at=times, die_at=times, noclaim_s=st.floats(0, 1e6), credential_margin_s=st.floats(0, 1e4)
    ),
    st.builds(
        Facts, now=st.floats(0, 2e6), claims=st.integers(0, 9), idle_s=st.floats(0, 1e6),
        credential_ends_at=times, shutdown=st.booleans(), shutdown_fast=st.booleans(),
    ),
)  # fmt: skip
def test_an_end_is_never_taken_back_as_time_goes_on(limits: Limits, facts: Facts) -> None:
    order = [Wish.GO_ON, Wish.RETIRE, Wish.END_GRACEFULLY, Wish.END_FAST]
    later = attrs.evolve(facts, now=facts.now + 100)
    assert order.index(decide(limits, later).wish) >= order.index(decide(limits, facts).wish)


ROW = re.compile(r"^\| (\d) \| ", re.MULTILINE)


def test_the_page_has_a_row_for_each_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pilot-life.md").read_text()
    assert [int(number) for number in ROW.findall(page)] == list(range(1, len(RULES) + 1))


def ad(**values: object) -> ClassAd:
    made = ClassAd()
    for name, value in values.items():
        made[name] = value
    return made


@pytest.mark.parametrize(
    ("slot", "job", "expected"),
    [
        (60, None, 60.0),
        (60, 30, 30.0),
        (60, 90, 60.0),
        (-1, None, 0.0),
        ("soon", None, 0.0),
        (True, None, 0.0),
        (ExprTree("undefined"), None, 0.0),
        (ExprTree("error"), 90, 0.0),
        (60, ExprTree("nowhere"), 0.0),
        (ExprTree('real("NaN")'), None, 0.0),
        (ExprTree("TARGET.JobStatus == 2 ? 40 : 5"), ExprTree("1000"), 40.0),
    ],
)
def test_retirement_is_the_slots_or_less(slot: object, job: object, expected: float) -> None:
    job_ad = None if job is None else ad(MaxJobRetirementTime=job, JobStatus=2)
    assert retirement_s(ad(MaxJobRetirementTime=slot), job_ad) == expected
    assert math.isfinite(retirement_s(ad(MaxJobRetirementTime=slot), job_ad))


def test_a_decision_without_a_reason_is_to_go_on() -> None:
    assert decide(Limits(), BUSY) == Decision(Wish.GO_ON)


# --- the pilot's own proxy and tokens --------------------------------------------------------------------------------


def token(directory: Path, name: str, lifetime_s: float | None) -> float:
    now = time.time()
    text = tokens.mint(b"k" * 32, "POOL", "pilot@x", "x", now_unix_s=now, lifetime_s=lifetime_s)
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text + "\n")
    (directory / name).chmod(0o600)
    return now + (lifetime_s or 0)


def test_without_proxy_and_token_nothing_ends(tmp_path: Path) -> None:
    assert OwnCredentials(None, tmp_path / "none").ends_at() is None


def test_the_last_of_several_tokens_counts(tmp_path: Path) -> None:
    token(tmp_path / "t", "a", 100)
    last = token(tmp_path / "t", "b", 1000)
    assert OwnCredentials(None, tmp_path / "t").ends_at() == pytest.approx(last, abs=2)
    token(tmp_path / "t", "c", None)
    assert OwnCredentials(None, tmp_path / "t").ends_at() is None


def test_a_renewed_proxy_is_seen_and_a_broken_one_is_not_believed(tmp_path: Path) -> None:
    user = make_grid(tmp_path / "ca").user("Polly Pilot")
    path = tmp_path / "proxy"
    write_private(path, make_proxy(user, lifetime_s=100).pem)
    own = OwnCredentials(path, tmp_path / "none")
    first = own.ends_at()
    assert first == pytest.approx(time.time() + 100, abs=5)
    write_private(tmp_path / "new", make_proxy(user, lifetime_s=1000).pem)
    os.rename(tmp_path / "new", path)
    renewed = own.ends_at()
    assert renewed == pytest.approx(time.time() + 1000, abs=5)
    path.write_text("rubbish")
    assert own.ends_at() == renewed
    path.unlink()
    assert own.ends_at() == renewed
    token(tmp_path / "none", "a", 50)
    assert own.ends_at() == pytest.approx(time.time() + 50, abs=5)
