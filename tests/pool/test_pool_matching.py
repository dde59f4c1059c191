"""Matching: order, two-way requirements, claim ids used once, who gets an idle claim."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar import classads
from pool.ads import matches
from pool.matching import Lines, Offer, OfferBook, Prepared, Seen, Waiting, claimable, in_turn, prepare, startd_key
from pool.model import JobId

STARTD = ("x", "127.0.0.1")


def job(cluster: int, proc: int = 0, *, user: str = "alice@p", **more: str) -> Prepared:
    said = {"User": f'"{user}"', "Requirements": "true", "RequestCpus": "1", "ProcId": str(proc)} | more
    return prepare(JobId(cluster, proc), classads.parse_old("".join(f"{k} = {v}\n" for k, v in said.items())))


def slot(**more: str) -> Any:
    said = {"Name": '"slot1@x"', "Cpus": "2", "Requirements": "TARGET.RequestCpus <= Cpus", "OpSys": '"LINUX"'} | more
    return classads.parse_old("".join(f"{k} = {v}\n" for k, v in said.items()))


def offer(name: str = "slot1@x", claim: str = "c1", **more: str) -> Offer:
    return Offer(name, STARTD, slot(**more), claim)


def lines(*jobs: Prepared) -> Lines:
    made = Lines()
    for each in jobs:
        made.add(each)
    return made


def first_for(waiting: Lines, slot: Any, *jobs: Prepared) -> JobId | None:
    """`jobs`: those that are asked for their own ads, if any."""
    own = {each.job.id: each.ad for each in jobs}
    found = at_end(waiting.first_for(slot, own.get))
    return None if found is None else found.id


def at_end(search: Generator[None, None, Waiting | None]) -> Waiting | None:
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value


def test_jobs_go_in_order_of_submission() -> None:
    waiting = lines(job(2), job(1, 1), job(1, 0, RequestMemory="5"))
    order = []
    while (found := first_for(waiting, slot())) is not None:
        waiting.take(found)
        order.append(str(found))
    assert (order, len(waiting)) == (["1.0", "1.1", "2.0"], 0)


def test_both_sides_must_agree() -> None:
    wide, picky, plain = job(1, RequestCpus="4"), job(2, Requirements='TARGET.OpSys == "WINDOWS"'), job(3)
    assert first_for(lines(wide, picky, plain), slot()) == plain.job.id


@pytest.mark.parametrize("expression", ["undefined", "error", '"true"', "NoSuchName", "1/0"])
def test_only_true_is_true(expression: str) -> None:
    assert first_for(lines(job(1, Requirements=expression)), slot()) is None
    assert first_for(lines(job(1)), slot(Requirements=expression)) is None


def test_bare_names_are_looked_up_on_the_other_side() -> None:
    assert first_for(lines(job(1, Requirements='OpSys == "LINUX"')), slot())


def test_a_missing_requirements_never_matches() -> None:
    ad = slot()
    del ad["Requirements"]
    assert first_for(lines(job(1)), ad) is None


def test_equal_jobs_cost_one_trial() -> None:
    waiting = lines(*[job(1, proc, Arguments=f'"{proc}"', Out=f'"o.{proc}"') for proc in range(50)])
    assert len(list(waiting.first_for(slot(Requirements="false"), {}.get))) == 1


@pytest.mark.parametrize("where", ["slot", "job"])
def test_a_name_that_an_expression_uses_tells_jobs_apart(where: str) -> None:
    jobs = [job(1, proc, **({"RequestCpus": "ProcId == 3 ? 1 : 100"} if where == "job" else {})) for proc in range(5)]
    said = {"Requirements": "TARGET.ProcId == 3"} if where == "slot" else {}
    assert first_for(lines(*jobs), slot(**said), *jobs) == JobId(1, 3)


@pytest.mark.parametrize(
    "said",
    [{"Requirements": "ProcId == 3"}, {"Requirements": "Mine", "Mine": "ProcId == 3"}],
    ids=["its Requirements", "what these name"],
)
def test_a_job_is_not_tried_by_what_another_one_requires(said: dict[str, str]) -> None:
    assert first_for(lines(*[job(1, proc, **said) for proc in range(5)]), slot()) == JobId(1, 3)


def test_nor_by_what_a_slot_asks_of_it_in_another_name() -> None:
    waiting = lines(*[job(1, proc, Mine="ProcId == 3") for proc in range(5)])
    assert first_for(waiting, slot(Requirements="TARGET.Mine")) == JobId(1, 3)


def test_words_of_a_text_tell_no_jobs_apart() -> None:
    waiting = lines(*[job(1, proc, Out=f'"{proc}"', UserLog=r'"a \"b\" out of in"') for proc in range(5)])
    assert len(list(waiting.first_for(slot(Requirements="false"), {}.get))) == 1


def test_a_job_without_an_ad_of_its_own_any_more_is_passed_by() -> None:
    first, second = job(1, 3, Requirements="true"), job(2, 3, RequestMemory="5")
    assert first_for(lines(first, second), slot(Requirements="TARGET.ProcId == 3"), second) == second.job.id


def test_jobs_may_come_and_go_during_a_search() -> None:
    gone, stays = job(1, RequestMemory="1"), job(2, RequestMemory="2")
    waiting = lines(gone, stays)
    search = waiting.first_for(slot(Requirements="TARGET.RequestMemory > 1"), {}.get)
    next(search)
    waiting.take(gone.job.id)
    waiting.add(job(3, RequestMemory="3"))
    assert at_end(search) == stays.job


def test_an_idle_claim_goes_to_its_users_job_only_in_turn() -> None:
    job_of_alice = job(2, user="alice@p").job
    assert in_turn(job_of_alice, "alice@p") is job_of_alice
    assert in_turn(job_of_alice, "bob@p") is None
    assert in_turn(None, "alice@p") is None


def test_a_job_that_comes_again_waits_once() -> None:
    waiting = lines(job(1), job(2), job(1, RequestMemory="7"))
    assert (len(waiting), JobId(1, 0) in waiting) == (2, True)
    waiting.take(JobId(1, 0))
    waiting.take(JobId(1, 0))
    assert (len(waiting), JobId(1, 0) in waiting, waiting.waiting(JobId(1, 0))) == (1, False, None)


SMALL = st.integers(0, 2)


@given(
    st.dictionaries(st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL), max_size=9),
    st.permutations(range(9)),
    st.sampled_from(["RequestMemory == 1", "RequestMemory > 0 && TARGET.NumJobStarts == 1", "TARGET.ProcId == 2"]),
)
def test_the_first_one_is_found_however_they_came(
    said: dict[tuple[int, int], tuple[int, int]], order: list[int], wanted: str
) -> None:
    jobs = [job(*key, RequestMemory=str(m), NumJobStarts=str(n)) for key, (m, n) in said.items()]
    jobs = [jobs[at] for at in order if at < len(jobs)]
    ad = slot(Requirements=wanted)
    fitting = [each.job.id for each in jobs if matches(each.ad, ad)]
    assert first_for(lines(*jobs), ad, *jobs) == min(fitting, default=None)


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
