"""The forerunner as a real process, what it hands over, and the job that stops before its launch."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from cedar.sessions import Session
from cedar.sinful import Sinful
from pilot.credentials import Credential
from pilot.farside import Asking
from pilot.rpc import Channel, RpcFault, send_blocking
from starter import forerunner
from starter.description import describe
from starter.events import FACTS, Begin, CredentialStored, JobKnown, StagedIn, Step, SuspendAsked
from starter.forerunner import Forerunner, Handed
from starter.handover import HANDOVER, Catalogued, DropLaunch, HandOver, OpenLaunch, Reached, catalogued, entries_in
from starter.job import Job
from starter.life import Life, State
from starter.messages import STARTER, SuspendJob
from starter.sandbox import Account, Catalogue, CatalogueEntry
from starter.spawner import EXIT_BUG
from starter.transfer import Route
from starter.work import Work
from tests.starter.test_starter_description import ad

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
DESCRIPTION = describe(ad(In="in.txt", Env="A=1;B=2", TransferOutput="a,b", x509userproxy="/home/alice/proxy"))
CREDENTIAL = Credential(b"PEM", "/CN=Alice", "/CN=Alice/CN=1", "/CN=CA", 4e9, False, True, ("/vo",))


def launching() -> Life:
    """A life up to its launch."""
    life = Life()
    for now_s, event in enumerate((JobKnown(True, True), CredentialStored(), SuspendAsked(), StagedIn())):
        life.handle(event, now_s=float(now_s))
    return life


def handed() -> HandOver:
    session = Session("sid", b"k" * 32, "submit-side", "FS", None, "DAEMON")
    return HandOver(
        reached=Reached.of(launching()), stream_state={"key": b"\xff" * 32, "partial": b""}, heard_s=1.5, began_s=0.5,
        since_ns=1 << 60, private_dir=Path("/run/1-2"), place=(Path("/x/sandbox"), Path("/x"), 5, 1 << 40),
        job_ad="[ a = 1 ]", description=DESCRIPTION, route=Route(Sinful("127.0.0.1", 9, {"sock": "s"}), session, "key"),
        credential=CREDENTIAL, account=Account(1001, 1002, "alice"), proxy_in_sandbox=True, proxy_copied=False,
        proxy_words="renewed", proxy_stale=True, proxy_keys=(b"DER",), tokens={"scitokens.use": b"t"},
        chirp_wishes=frozenset({"files"}), chirp_cookie="c",
    )  # fmt: skip


# --- what is handed over -----------------------------------------------------------------------------------------


def test_what_is_handed_over_arrives_as_it_was() -> None:
    arrived = HANDOVER.decode(HANDOVER.encode(handed()))
    assert arrived.route.session.key == b"k" * 32
    # sessions are equal only to themselves
    assert str(arrived) == str(handed())
    assert arrived.description == DESCRIPTION
    assert arrived.credential.pem == b"PEM"
    assert arrived.tokens == {"scitokens.use": b"t"}


def test_nothing_secret_is_shown() -> None:
    for secret in ("kkk", "xff", "PEM", "DER", "'t'", "cookie='c'"):
        assert secret not in repr(handed())


def test_a_life_goes_on_where_it_was() -> None:
    before = launching()
    after = Reached.of(before).life()
    assert after.tell() == before.tell()
    assert after == before


@pytest.mark.parametrize("listed", [True, False])
def test_the_catalogue_goes_along_where_the_output_is_held_against_it(listed: bool) -> None:
    entries = tuple(CatalogueEntry(f"f\udcff{n}", "file", 0o644, n, n) for n in range(2500))
    names = ("a",) if listed else None
    work = SimpleNamespace(catalogue=Catalogue(entries), description=SimpleNamespace(output_names=names))
    pieces = [HANDOVER.decode(HANDOVER.encode(piece)) for piece in catalogued(cast(Work, work))]
    assert len(pieces) == (0 if listed else 3)
    assert [entry for piece in pieces for entry in entries_in(piece)] == ([] if listed else list(entries))


# --- the process -------------------------------------------------------------------------------------------------


async def told(work: Callable[[socket.socket], int]) -> tuple[Forerunner, Handed | None, list[OpenLaunch | None]]:
    fore, opened = forerunner.fork(work, LOG), []
    with trio.fail_after(20):
        return fore, await fore.listen(opened.append), opened


async def test_a_forerunner_tells_and_hands_over() -> None:
    asked = OpenLaunch("job#1", Path("/p"), Path("/x"))
    asking = cast(Asking, SimpleNamespace(audit_id="job#1", credential=Path("/p"), place=Path("/x")))

    def work(starter: socket.socket) -> int:
        forerunner.tell_of_launch(starter, asking)
        forerunner.tell_of_launch(starter, None)
        send_blocking(starter, HANDOVER, Catalogued([["n", "file", 0o644, 1, 2]]))
        send_blocking(starter, HANDOVER, handed(), [os.open("/etc/hostname", os.O_RDONLY)])
        return 0

    fore, found, opened = await told(work)
    assert found is not None
    assert opened == [asked, None]
    assert found.message.description == DESCRIPTION
    assert found.catalogue == Catalogue((CatalogueEntry("n", "file", 0o644, 1, 2),))
    assert os.read(found.fds[0], 10) == Path("/etc/hostname").read_bytes()[:10]  # noqa: ASYNC240
    os.close(found.fds[0])
    assert await fore.ended() == 0


@pytest.mark.parametrize(
    ("work", "status"),
    [(lambda _: 7, 7), (lambda _: os.kill(os.getpid(), signal.SIGKILL), EXIT_BUG), (lambda _: 1 / 0, EXIT_BUG)],
    ids=["its own end", "killed", "our bug"],
)
async def test_one_that_ends_the_activation_itself(work: Callable[[socket.socket], int], status: int) -> None:
    fore, found, _ = await told(work)
    assert found is None
    assert await fore.ended() == status


def test_a_forerunner_does_not_outlive_its_starter() -> None:
    readable, writable = os.pipe()
    starter = os.fork()
    if starter == 0:
        fore = forerunner.fork(lambda _: time.sleep(60) or 0, LOG)
        os.write(writable, str(fore.pid).encode())
        time.sleep(60)
    os.close(writable)
    pidfd = os.pidfd_open(int(os.read(readable, 20)))
    os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    os.close(readable)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(RpcFault):
        HANDOVER.decode(STARTER.encode(SuspendJob()))
    assert HANDOVER.decode(HANDOVER.encode(DropLaunch())) == DropLaunch()


# --- the job's side ----------------------------------------------------------------------------------------------


class Stop:
    """A job that has reached its launch, with a startd on the other end of its channel."""

    def __init__(self, nursery: trio.Nursery, ours: socket.socket) -> None:
        self.shadow = SimpleNamespace(idle=True)
        work = SimpleNamespace(shadow=self.shadow, ahead=None, procd=SimpleNamespace(expect_no_other=lambda: None))
        self.job = Job(cast(Work, work), Channel(trio.socket.from_stdlib_socket(ours), STARTER), LOG, until_launch=True)
        self.job._life = launching()
        self.job._nursery = nursery

    async def begin(self) -> None:
        self.job._nursery.start_soon(self.job._watch_startd)
        await self.job._carry_out(Begin(Step.LAUNCH))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The job's end of its channel, and the startd's."""
    ours, startd = socket.socketpair()
    with ours, startd:
        yield ours, startd


Ends = tuple[socket.socket, socket.socket]


async def test_a_job_stops_before_its_launch_when_nothing_is_under_way(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        stop = Stop(nursery, ends[0])
        stop.shadow.idle = False
        await stop.begin()
        await trio.sleep(5)
        assert not nursery.cancel_scope.cancel_called
        stop.shadow.idle = True
    assert nursery.cancel_scope.cancel_called


async def test_what_the_startd_said_before_is_heard_by_the_one_that_it_was_said_to(ends: Ends) -> None:
    async with trio.open_nursery() as nursery:
        stop = Stop(nursery, ends[0])
        send_blocking(ends[1], STARTER, SuspendJob())
        await stop.begin()
        event = await stop.job._told.receive()
        assert type(event) in FACTS
    assert nursery.cancel_scope.cancel_called


async def test_half_a_message_of_the_startds_is_waited_for(ends: Ends, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        stop = Stop(nursery, ends[0])
        ends[1].sendall(b"\0\0")
        nursery.start_soon(stop.job._watch_startd)
        await trio.testing.wait_all_tasks_blocked()
        await stop.job._carry_out(Begin(Step.LAUNCH))
        await trio.sleep(5)
        assert not nursery.cancel_scope.cancel_called
        assert stop.job._life.state is State.LAUNCHING
        nursery.cancel_scope.cancel()
