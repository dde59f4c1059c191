"""Calls to the shadow: one at a time, answered or refused, never cut off; a lost socket is noticed between calls."""

from __future__ import annotations

import socket

import pytest
import trio
from classad2 import ClassAd

from cedar.codec import Item
from cedar.commands import Syscall
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.shadow import CALL_DEADLINE_S, Shadow, ShadowRefused


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
    with trio.fail_after(5):
        await shadow.wait_gone()
    with pytest.raises(PeerFault):
        await shadow.begin_execution()


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
            await shadow.begin_execution()
        assert trio.current_time() - before == pytest.approx(CALL_DEADLINE_S)
        nursery.cancel_scope.cancel()
