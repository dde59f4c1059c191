"""STARTER_PEEK from the passed connection to the files: with the real wrapper at one account, and against lies."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from classad2 import ClassAd

from cedar.classads import get_str, parse_old
from cedar.codec import Reader
from cedar.commands import Command
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from starter.description import describe
from starter.life import State
from starter.messages import PassedCommand
from starter.peek import MAX_BYTES, STDOUT, Wanted, _rows
from starter.places import Place
from starter.sandbox import Context, StageFailed, make_place, stage_in
from starter.visits import Visits
from starter.work import Work
from tests.jobwrapper.farsides import hostile_context, wrapper_context

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
JOB = parse_old(
    'ClusterId = 1\nProcId = 0\nCmd = "/bin/true"\nUser = "alice@x"\nOut = "job.out"\nErr = "job.err"\n'
    'TransferOutput = "result,empty,link,turned,up,fifo,gone,sub/../../../x"\n'
)


def request(**values: Any) -> ClassAd:
    ad = ClassAd()
    for name, value in values.items():
        ad[name] = value
    return ad


class Peer:
    """The owner's end of a connection that the startd has passed on."""

    def __init__(self, stream: CedarStream) -> None:
        self.stream = stream

    async def get(self) -> Reader:
        with trio.fail_after(60):
            return await self.stream.get()

    async def answer(self) -> ClassAd:
        return (await self.get()).ad()

    async def pieces(self) -> dict[int | str, tuple[int, bytes]]:
        """As a stock tool reads them: an empty file's mark stands in front of what follows."""
        head = await self.answer()
        assert head["Result"] is True, get_str(head, "ErrorString", "")
        found, reader = {}, await self.get()
        for label, offset in zip(head["TransferFiles"], head["TransferOffsets"], strict=True):
            size, chunk = reader.int(), reader.int()
            content = b""
            while len(content) < size:
                content += (await self.get()).raw(min(chunk, size - len(content)))
            found[label] = (offset, content)
            reader = await self.get()
            if not size:
                assert reader.int() == 666
        assert reader.int() == len(found)
        reader.end()
        return found


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[int, dict[str, Any], Peer]]:
    """A keyed connection as the startd exports it: descriptor, state; and the tool's end."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    key = secrets.token_bytes(32)
    tool = CedarStream(await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2]))
    startd = CedarStream(await listeners[0].accept())
    await listeners[0].aclose()
    tool.use_key(key)
    startd.use_key(key)
    sock, state = startd.export()
    async with tool:
        yield sock.detach(), state, Peer(tool)


class Job:
    """A running job's sandbox, and visits to it."""

    def __init__(self, place: Place, context: Context) -> None:
        self.place, self.state = place, State.RUNNING
        settings = SimpleNamespace(sailplane_switch_deadline=10.0)
        work = SimpleNamespace(
            description=describe(JOB),
            job_ad=JOB,
            place=place,
            settings=settings,
            host="slot",
            context=lambda once: context,
        )
        self.visits = Visits(cast(Work, work), lambda: self.state, LOG, pause_s=0.0)

    @asynccontextmanager
    async def ask(
        self, asked: ClassAd, *, command: Command = Command.STARTER_PEEK, identity: str = "alice@x"
    ) -> AsyncIterator[Peer]:
        async with connection() as (fd, state, peer), trio.open_nursery() as nursery:
            nursery.start_soon(self.visits.serve, PassedCommand(command, identity, str(asked), state), fd)
            yield peer

    async def look(self, **values: Any) -> dict[int | str, tuple[int, bytes]]:
        async with self.ask(request(**values)) as peer:
            return await peer.pieces()

    async def refused(self, **values: Any) -> ClassAd:
        async with self.ask(request(**values)) as peer:
            answer = await peer.answer()
        assert answer["Result"] is False
        assert "secret" not in str(answer)
        return answer


@pytest.fixture
async def job(tmp_path: Path) -> Job:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.finish()
    (place.path / "_condor_stdout").write_text("0123456789")
    (place.path / "_condor_stderr").write_text("trouble")
    (place.path / "result").write_text("result")
    (place.path / "empty").touch()
    return Job(place, wrapper_context())


async def test_stdout_from_an_offset_and_from_the_end(job: Job) -> None:
    assert await job.look(Out=True, OutOffset=4) == {0: (4, b"456789")}
    assert await job.look(Out=True, OutOffset=-1, MaxTransferBytes=3) == {0: (7, b"789")}
    assert await job.look(Out=True, OutOffset=2, MaxTransferBytes=3) == {0: (2, b"234")}
    assert await job.look(Out=True, OutOffset=99) == {0: (10, b"")}
    assert await job.look(Out=True, OutOffset=-99) == {0: (0, b"0123456789")}


async def test_several_files_with_empty_ones_in_every_place(job: Job) -> None:
    found = await job.look(Out=True, Err=True, TransferFiles=["empty", "result"], TransferOffsets=[0, -1])
    assert found == {0: (0, b"0123456789"), 1: (0, b"trouble"), "empty": (0, b""), "result": (0, b"result")}
    (job.place.path / "_condor_stdout").write_text("")
    assert await job.look(Out=True, TransferFiles=["result", "empty"]) == {
        0: (0, b""), "result": (0, b"result"), "empty": (0, b"")
    }  # fmt: skip


async def test_the_limit_is_for_all_files_together(job: Job) -> None:
    assert await job.look(Out=True, Err=True, OutOffset=0, ErrOffset=0, MaxTransferBytes=12) == {
        0: (0, b"0123456789"), 1: (0, b"tr")
    }  # fmt: skip
    assert await job.look(Out=True, MaxTransferBytes=0) == {0: (10, b"")}


async def test_more_than_a_chunk_and_never_more_than_the_most(job: Job) -> None:
    (job.place.path / "_condor_stdout").write_bytes(os.urandom(MAX_BYTES) + b"end")
    found = await job.look(Out=True, OutOffset=-1, MaxTransferBytes=1 << 60)
    assert found[0][0] == 3
    assert len(found[0][1]) == MAX_BYTES
    assert found[0][1].endswith(b"end")


async def test_the_users_name_of_a_stream_is_understood(job: Job) -> None:
    assert await job.look(TransferFiles=["job.out"]) == {"job.out": (0, b"0123456789")}


@pytest.mark.parametrize("name", ["other", "../x", "/etc/passwd", "_condor_stdout", "", "sub", ".job.ad", "result/"])
async def test_a_file_that_is_no_output_is_not_even_looked_for(job: Job, name: str) -> None:
    (job.place.path / "other").write_text("secret")
    answer = await job.refused(TransferFiles=[name])
    assert answer["Retry"] is False
    assert job.visits.calls == 0


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../outside", "."])
async def test_a_listed_name_that_leads_out_of_the_sandbox_shows_nothing(job: Job, target: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (job.place.path / "link").symlink_to(target)
    assert get_str(await job.refused(TransferFiles=["link"]), "ErrorString").startswith("link: not ")


async def test_neither_do_dots_nor_a_parent_that_is_a_link(job: Job, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("secret")
    (job.place.path / "sub").symlink_to(tmp_path)
    await job.refused(TransferFiles=["sub/../../../x"])
    (job.place.path / "up").symlink_to("sub/x")
    await job.refused(TransferFiles=["up"])


async def test_a_link_inside_is_followed(job: Job) -> None:
    (job.place.path / "link").symlink_to("result")
    assert await job.look(TransferFiles=["link"]) == {"link": (0, b"result")}


async def test_a_fifo_keeps_nobody_waiting(job: Job) -> None:
    os.mkfifo(job.place.path / "fifo")
    await job.refused(TransferFiles=["fifo"])
    assert "No such file" in get_str(await job.refused(TransferFiles=["gone"]), "ErrorString")


async def test_somebody_else_hears_nothing_at_all(job: Job) -> None:
    async with job.ask(request(Out=True), identity="bob@x") as peer:
        with pytest.raises(PeerFault, match="closed"):
            await peer.answer()
    assert job.visits.calls == 0


@pytest.mark.parametrize(("state", "retry"), [(State.LAUNCHING, True), (State.STAGING_OUT, False)])
async def test_before_and_after_the_job_there_is_nothing_to_see(job: Job, state: State, retry: bool) -> None:
    job.state = state
    assert (await job.refused(Out=True))["Retry"] is retry
    assert job.visits.calls == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"TransferFiles": "result"}, {"TransferFiles": [1]}, {"TransferFiles": ["result"], "TransferOffsets": [1, 2]},
        {"TransferFiles": ["result"], "TransferOffsets": ["x"]},
    ],
)  # fmt: skip
async def test_a_request_of_another_shape_ends_its_connection(job: Job, asked: dict[str, Any]) -> None:
    async with job.ask(request(**asked)) as peer:
        with pytest.raises(PeerFault):
            await peer.answer()
    assert job.visits.calls == 0


async def test_nonsense_instead_of_a_connection_harms_nobody(job: Job) -> None:
    async with connection() as (fd, _, _peer):
        await job.visits.serve(PassedCommand(Command.STARTER_PEEK, "alice@x", "[]", {"key": 1}), fd)
    assert await job.look(Out=True)


async def test_one_look_at_a_time_with_a_pause_between(job: Job) -> None:
    job.visits.pause_s = 0.3
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: job.look(Out=True))
    assert trio.current_time() - began_s >= 0.6
    assert job.visits.calls == 3


@pytest.mark.parametrize(
    "said",
    [
        '{"found": [], "missing": []}',
        '{"found": [[0, 0, 999]], "missing": []}',
        '{"found": [[1, 0, 1]], "missing": []}',
        '{"found": [[0, -1, 1]], "missing": []}',
        '{"found": [[0, 0, true]], "missing": []}',
        '{"found": 7, "missing": []}',
        '{"found": [[0, 0, 5]], "missing": []}',
        '{"missing": [[]]}',
        "{}",
    ],
)
async def test_a_far_side_that_lies(job: Job, tmp_path: Path, said: str) -> None:
    context = hostile_context(tmp_path / "far", f"hello(); receive(); send(json.loads({said!r}))")
    liar = Job(job.place, context)
    answer = await liar.refused(Out=True, MaxTransferBytes=10)
    assert answer["Retry"] is False


@pytest.mark.parametrize(
    "found",
    [[[0, 0, 11]], [[0, 0, -1]], [[0, -5, 1]], [[1, 0, 1]], [[0, 0]], [[0, 0, 1], [1, 0, 1]], [[0, 0, 1 << 80]]],
)
def test_rows_are_those_that_were_asked_for_and_no_more_bytes(found: list[list[int]]) -> None:
    with pytest.raises(StageFailed):
        _rows({"missing": [], "found": found}, [Wanted(STDOUT, "_condor_stdout", 0)], 10)
