"""Matching: order, two-way requirements, claim ids used once, who gets an idle claim."""

from __future__ import annotations

from typing import Any

import pytest

from cedar import classads
from pool.matching import Offer, OfferBook, Seen, Waiting, assign, claimable, next_for_claim, startd_key, waiting
from pool.model import JobId

STARTD = ("x", "127.0.0.1")


def job(cluster: int, proc: int = 0, *, user: str = "alice@p", **more: str) -> Waiting:
    said = {"User": f'"{user}"', "Requirements": "true", "RequestCpus": "1", "ProcId": str(proc)} | more
    return waiting(JobId(cluster, proc), classads.parse_old("".join(f"{k} = {v}\n" for k, v in said.items())))


def slot(**more: str) -> Any:
    said = {"Name": '"slot1@x"', "Cpus": "2", "Requirements": "TARGET.RequestCpus <= Cpus", "OpSys": '"LINUX"'} | more
    return classads.parse_old("".join(f"{k} = {v}\n" for k, v in said.items()))


def offer(name: str = "slot1@x", claim: str = "c1", **more: str) -> Offer:
    return Offer(name, STARTD, slot(**more), claim)


def test_jobs_go_in_order_of_submission() -> None:
    jobs = [job(2), job(1, 1), job(1, 0)]
    pairs = list(assign(jobs, [offer("a"), offer("b"), offer("c")]))
    assert [str(chosen.id) for _, chosen in pairs] == ["1.0", "1.1", "2.0"]


def test_both_sides_must_agree() -> None:
    wide, picky, plain = job(1, RequestCpus="4"), job(2, Requirements='TARGET.OpSys == "WINDOWS"'), job(3)
    ((_, chosen),) = assign([wide, picky, plain], [offer()])
    assert chosen is plain


@pytest.mark.parametrize("expression", ["undefined", "error", '"true"', "NoSuchName", "1/0"])
def test_only_true_is_true(expression: str) -> None:
    assert list(assign([job(1, Requirements=expression)], [offer()])) == []
    assert list(assign([job(1)], [offer(Requirements=expression)])) == []


def test_bare_names_are_looked_up_on_the_other_side() -> None:
    assert list(assign([job(1, Requirements='OpSys == "LINUX"')], [offer()]))


def test_a_missing_requirements_never_matches() -> None:
    ad = slot()
    del ad["Requirements"]
    assert list(assign([job(1)], [Offer("a", STARTD, ad, "c")])) == []


def test_equal_jobs_cost_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    import pool.matching as module

    trials = []
    monkeypatch.setattr(module, "matches", lambda one, other: trials.append(one) is not None)
    jobs = [job(1, proc, Arguments=f'"{proc}"', Out=f'"o.{proc}"') for proc in range(50)]
    assert list(assign(jobs, [offer()])) == []
    assert len(trials) == 1


@pytest.mark.parametrize("where", ["slot", "job"])
def test_a_name_that_an_expression_uses_tells_jobs_apart(where: str) -> None:
    jobs = [job(1, proc, **({"RequestCpus": "ProcId == 3 ? 1 : 100"} if where == "job" else {})) for proc in range(5)]
    said = {"Requirements": "TARGET.ProcId == 3"} if where == "slot" else {}
    ((_, chosen),) = assign(jobs, [offer(**said)])
    assert chosen.id == JobId(1, 3)


def test_an_idle_claim_goes_to_its_users_job_only_in_turn() -> None:
    alice, bob = job(2, user="alice@p"), job(1, user="bob@p")
    assert next_for_claim([alice], slot(), "alice@p") is alice
    assert next_for_claim([alice, bob], slot(), "alice@p") is None  # bob was first
    assert next_for_claim([], slot(), "alice@p") is None


def test_a_claim_id_is_used_once() -> None:
    book = OfferBook()
    first = offer()
    book.advertised(first, claimable=True)
    assert book.take(first)
    assert not book.take(first)
    book.advertised(first, claimable=True)  # an ad that was on its way
    assert book.offers() == []


def test_leftovers_are_newer_than_ads() -> None:
    book = OfferBook()
    first, left = offer(claim="c1"), offer(claim="c2", Cpus="1")
    book.advertised(first, claimable=True)
    book.take(first)
    book.left_over(left)
    book.advertised(first, claimable=True)
    assert book.offers() == [left]
    third = offer(claim="c3")
    book.advertised(third, claimable=True)
    assert book.offers() == [third]


def test_a_slot_that_is_no_longer_claimable_is_no_offer() -> None:
    book = OfferBook()
    book.advertised(offer(), claimable=True)
    book.advertised(offer(claim="c2"), claimable=False)
    assert book.offers() == []


def test_a_startd_started_anew_forgets_its_claim_ids() -> None:
    book = OfferBook()
    assert book.speaks(STARTD, "<a:1>", 100) is Seen.FIRST
    assert book.speaks(STARTD, "<a:1>", 100) is Seen.KNOWN
    book.advertised(offer(), claimable=True)
    assert book.speaks(STARTD, "<a:2>", 200) is Seen.ANEW
    assert book.offers() == []


def test_an_older_startd_of_the_same_name_is_the_second() -> None:
    book = OfferBook()
    book.speaks(STARTD, "<a:2>", 200)
    book.advertised(offer(), claimable=True)
    assert book.speaks(STARTD, "<a:1>", 100) is Seen.SECOND
    assert len(book.offers()) == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"PartitionableSlot": "true", "Memory": "1", "Disk": "1"}, True),
        ({"PartitionableSlot": "true", "Memory": "0", "Disk": "1"}, False),
        ({"DynamicSlot": "true", "State": '"Unclaimed"'}, False),
        ({"State": '"Unclaimed"'}, True),
        ({"State": '"Claimed"'}, False),
        ({}, False),
    ],
)
def test_what_can_be_claimed(said: dict[str, str], expected: bool) -> None:
    assert claimable(slot(**said)) is expected


def test_a_startd_is_its_name_and_host() -> None:
    ad = slot(MyAddress='"<10.0.0.1:99?sock=x>"')
    assert startd_key(ad) == ("x", "10.0.0.1")


def test_secrets_are_not_in_reprs() -> None:
    assert "c1" not in repr(offer())
