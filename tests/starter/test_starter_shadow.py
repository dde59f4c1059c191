"""Calls to the shadow: one at a time, answered or refused, never cut off; a lost socket is noticed between calls."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest
import trio
from classad2 import ClassAd

from cedar.codec import Item
from cedar.commands import Syscall
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.shadow import MAX_TRIES, Shadow, ShadowRefused
from starter.syscalls import CALL_DEADLINE_S


@pytest.fixture
async def pair():
    """Two connected streams, in clear."""
    ends = [CedarStream(trio.SocketStream(trio.socket.from_stdlib_socket(s))) for s in socket.socketpair()]
    yield ends
    for end in ends:
        await end.aclose()


class FakeShadow:
    """Answers as a shadow does; ``calls`` is what it heard. Contract: wire reference 4.1 and 4.3."""

    def __init__(self, stream: CedarStream) -> None:
        self.stream = stream
        self.calls: list[int] = []
        self.answers: dict[int, tuple[Item, ...]] = {}

    async def serve(self) -> None:
        try:
            while True:
                op = (await self.stream.get()).int()
                self.calls.append(op)
                if op != Syscall.ULOG:
                    await self.stream.put(*self.answers.get(op, (0,)))
        except PeerFault:
            return


@pytest.fixture
async def ends(pair: list[CedarStream]):
    ours, theirs = pair
    shadow, fake = Shadow(ours), FakeShadow(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shadow.listen)
        nursery.start_soon(fake.serve)
        yield shadow, fake
        nursery.cancel_scope.cancel()


async def test_an_ad_comes_back(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    fake.answers[Syscall.GET_JOB_INFO] = (0, ClassAd({"ClusterId": 5}))
    assert (await shadow.get_job_info())["ClusterId"] == 5


async def test_a_negative_value_is_a_refusal_with_its_errno(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    fake.answers[Syscall.BEGIN_EXECUTION] = (-1, 13)
    with pytest.raises(ShadowRefused) as refused:
        await shadow.begin_execution()
    assert refused.value.errno == 13


async def test_an_event_has_no_answer_and_the_next_call_is_in_step(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    await shadow.log_event(ClassAd({"EventTypeNumber": 21}))
    await shadow.begin_execution()
    assert fake.calls == [Syscall.ULOG, Syscall.BEGIN_EXECUTION]


async def test_calls_of_many_tasks_take_turns(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(shadow.register_job_info, ClassAd({"N": number}))
    assert fake.calls == [Syscall.REGISTER_JOB_INFO] * 20


async def test_a_cancelled_caller_leaves_after_the_answer(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    with trio.CancelScope() as scope:
        scope.cancel()
        await shadow.register_job_info(ClassAd())
    await shadow.begin_execution()
    assert fake.calls[-1] == Syscall.BEGIN_EXECUTION


async def test_the_transfer_session_is_the_second_triple(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    fake.answers[Syscall.GET_SEC_SESSION_INFO] = (1, "r", "[ri]", "rk", "f", "[fi]", "fk")
    session = await shadow.get_transfer_session()
    assert (session.session_id, session.info, session.key) == ("f", "[fi]", "fk")
    assert "fk" not in repr(session)


async def test_a_proxy_takes_the_request_there_and_the_certificates_back(pair: list[CedarStream]) -> None:
    ours, theirs = pair
    shadow = Shadow(ours)

    async def exchange(delegate):
        return await delegate(b"request")

    async def serve() -> None:
        call = await theirs.get()
        assert (call.int(), call.string(), call.int()) == (Syscall.GET_DELEGATED_PROXY, "", 1234)
        request = await theirs.get()
        assert request.raw(request.int()) == b"request"
        await theirs.put(5, b"certs")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shadow.listen)
        nursery.start_soon(serve)
        assert await shadow.fetch_proxy(1234, exchange) == b"certs"
        nursery.cancel_scope.cancel()


async def test_a_failed_delegation_is_a_fault_in_words(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, _ = ends

    async def exchange(delegate):
        return await delegate(b"r")

    with pytest.raises(PeerFault, match="could not delegate"):
        await shadow.fetch_proxy(1, exchange)


async def test_a_lost_socket_is_noticed_between_calls(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    await fake.stream.aclose()
    with trio.fail_after(30):
        await shadow.wait_gone()
    with pytest.raises(PeerFault):
        await shadow.update_job_info(ClassAd())


async def test_a_shadow_that_speaks_out_of_turn_is_at_fault(pair: list[CedarStream]) -> None:
    ours, theirs = pair
    shadow = Shadow(ours)
    await theirs.put(1)
    fault = await shadow.listen()
    assert fault.code == "protocol"


async def test_a_silent_shadow_is_given_up(autojump_clock: trio.testing.MockClock, pair: list[CedarStream]) -> None:
    ours, _ = pair
    shadow = Shadow(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shadow.listen)
        before = trio.current_time()
        with pytest.raises(PeerFault, match="did not answer"):
            await shadow.update_job_info(ClassAd())
        assert trio.current_time() - before == pytest.approx(CALL_DEADLINE_S)
        nursery.cancel_scope.cancel()


# --- another socket ----------------------------------------------------------------------------------------------


TwoEnds = Callable[[], tuple[CedarStream, CedarStream]]


@pytest.fixture
async def two_ends():
    """Makes connected pairs; all are closed at the end."""
    made: list[CedarStream] = []

    def make() -> tuple[CedarStream, CedarStream]:
        made.extend(CedarStream(trio.SocketStream(trio.socket.from_stdlib_socket(s))) for s in socket.socketpair())
        return made[-2], made[-1]

    yield make
    for end in made:
        await end.aclose()


async def keep_listening(shadow: Shadow) -> None:
    while True:
        await shadow.listen()
        await shadow.wait_connected()


async def come_back(shadow: Shadow, nursery: trio.Nursery, two_ends: TwoEnds) -> FakeShadow:
    """A shadow that takes the job up again on a new socket."""
    ours, theirs = two_ends()
    fake = FakeShadow(theirs)
    fake.answers[Syscall.GET_SEC_SESSION_INFO] = (1, "r", "[ri]", "rk", "f2", "[fi]", "fk2")
    nursery.start_soon(fake.serve)
    session = await shadow.take(ours)
    assert (session.session_id, session.key) == ("f2", "fk2")
    return fake


async def test_an_interrupted_call_is_made_again_on_the_next_socket_after_the_session(two_ends: TwoEnds) -> None:
    ours, theirs = two_ends()
    shadow = Shadow(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_listening, shadow)

        async def cut_in_mid_call() -> None:
            assert (await theirs.get()).int() == Syscall.JOB_EXIT
            await theirs.aclose()

        async with trio.open_nursery() as calls:
            calls.start_soon(shadow.job_exit, 0, 100, ClassAd())
            await cut_in_mid_call()
            await shadow.wait_gone()
            fake = await come_back(shadow, nursery, two_ends)
        assert fake.calls == [Syscall.GET_SEC_SESSION_INFO, Syscall.JOB_EXIT]
        nursery.cancel_scope.cancel()


async def test_a_shadow_may_come_back_while_the_old_socket_still_looks_alive(two_ends: TwoEnds) -> None:
    ours, theirs = two_ends()
    shadow = Shadow(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_listening, shadow)
        async with trio.open_nursery() as calls:
            calls.start_soon(shadow.begin_execution)
            await theirs.get()  # and no answer, ever
            fake = await come_back(shadow, nursery, two_ends)
        assert fake.calls[-1] == Syscall.BEGIN_EXECUTION
        nursery.cancel_scope.cancel()


async def test_who_waits_for_a_shadow_may_be_cancelled_or_told_that_there_is_none(
    ends: tuple[Shadow, FakeShadow],
) -> None:
    shadow, fake = ends
    await fake.stream.aclose()
    await shadow.wait_gone()
    with trio.move_on_after(0.05) as waiting:
        await shadow.begin_execution()
    assert waiting.cancelled_caught
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await trio.testing.wait_all_tasks_blocked()
            shadow.give_up(PeerFault("closed", "its lease is over"))

        nursery.start_soon(give_up)
        with pytest.raises(PeerFault, match="lease"):
            await shadow.begin_execution()


async def test_a_shadow_that_comes_back_and_does_not_answer_changes_nothing(
    autojump_clock: trio.testing.MockClock, ends: tuple[Shadow, FakeShadow], two_ends: TwoEnds
) -> None:
    shadow, _ = ends
    mute, _theirs = two_ends()
    with pytest.raises(PeerFault, match="did not answer"):
        await shadow.take(mute)
    await shadow.begin_execution()


async def test_a_shadow_that_comes_back_too_late_gets_nothing(
    ends: tuple[Shadow, FakeShadow], two_ends: TwoEnds
) -> None:
    """Nobody listens any more: a call on its socket would keep the job's end waiting for two minutes."""
    shadow, fake = ends
    await fake.stream.aclose()
    await shadow.wait_gone()
    ours, theirs = two_ends()

    async def come_back_late() -> None:
        with pytest.raises(PeerFault, match="lease was over"):
            await shadow.take(ours)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back_late)
        assert (await theirs.get()).int() == Syscall.GET_SEC_SESSION_INFO
        shadow.give_up(PeerFault("closed", "its lease is over"))
        await theirs.put(1, "r", "[ri]", "rk", "f2", "[fi]", "fk2")
    assert (shadow.given_up, shadow.lost, shadow.takes) == (True, True, 0)
    with pytest.raises(PeerFault, match="its lease is over"):
        await shadow.note_job_ended()


async def test_a_call_that_costs_socket_after_socket_is_given_up(two_ends: TwoEnds) -> None:
    ours, theirs = two_ends()
    shadow = Shadow(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_listening, shadow)

        async def poison() -> None:
            nonlocal theirs
            await theirs.get()
            await theirs.aclose()
            for _ in range(MAX_TRIES - 1):
                await shadow.wait_gone()
                ours, theirs = two_ends()
                await theirs.put(1, "r", "[ri]", "rk", "f", "[fi]", "fk")
                await shadow.take(ours)
                await theirs.get()
                await theirs.get()
                await theirs.aclose()

        nursery.start_soon(poison)
        with pytest.raises(PeerFault):
            await shadow.job_exit(0, 100, ClassAd())
        nursery.cancel_scope.cancel()


async def test_tokens_come_in_one_answer_and_not_without_end(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    ad = ClassAd({"Service": "box", "Data": "QQ=="})
    fake.answers[Syscall.GETCREDS] = (1, ad, 1, ad, 0)
    assert [found["Service"] for found in await shadow.get_credentials()] == ["box", "box"]
    fake.answers[Syscall.GETCREDS] = (1, ad, -1)
    with pytest.raises(ShadowRefused):
        await shadow.get_credentials()
    fake.answers[Syscall.GETCREDS] = (1, ad) * 65
    with pytest.raises(PeerFault, match="64 tokens"):
        await shadow.get_credentials()


async def test_a_call_for_another_shadows_file_goes_to_nobody(ends: tuple[Shadow, FakeShadow]) -> None:
    shadow, fake = ends
    await shadow.remote(Syscall.READ, 3, 10, to=shadow.takes)
    with pytest.raises(ShadowRefused) as refused:
        await shadow.remote(Syscall.READ, 3, 10, to=shadow.takes - 1)
    assert refused.value.errno == errno.EBADF
    assert fake.calls == [Syscall.READ]
