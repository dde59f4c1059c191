"""Chirp: the wheel's client against the server, what strangers and hostile jobs get, and the rules for attributes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from starter import chirp, chirpserver
from starter.chirp import Code, Delayed, Refused, parse, split_words
from starter.chirpserver import ChirpServer
from starter.entries import StageFailed
from tests.starter.submitside import SubmitSide

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from htcondor.htchirp import HTChirp
    from htcondor.htchirp.htchirp import quote

ALL = frozenset({"files", "updates", "delayed"})
LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@contextlib.asynccontextmanager
async def serving(
    directory: Path, wishes: frozenset[str] = ALL, most: int = 3
) -> AsyncIterator[tuple[ChirpServer, Any]]:
    """A server, and its place as (submit side, port)."""
    side = SubmitSide(directory)
    server = ChirpServer(side, wishes, Delayed(["Chirp*", "my?"], 3), ClassAd({"JobPrio": 7}), LOG)
    host, port, cookie = (await server.open()).decode().split()
    assert (host, cookie) == ("127.0.0.1", server.cookie)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield server, (side, int(port))
        nursery.cancel_scope.cancel()


async def client(server: ChirpServer, port: int, use: Callable[[Any], Any]) -> Any:
    """The wheel's client, in a thread of its own."""

    def run() -> Any:
        with HTChirp("127.0.0.1", port, cookie=server.cookie, timeout=20) as made:
            return use(made)

    with trio.fail_after(30):
        return await trio.to_thread.run_sync(run)


# -- the wheel's client ---------------------------------------------------------------------------------------------


async def test_whole_files_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    local = tmp_path / "local"
    local.write_bytes(os.urandom(3_000_000))
    async with serving(tmp_path / "there") as (server, (_, port)):
        assert await client(server, port, lambda c: c.put(str(local), "big file")) == 3_000_000
        assert (tmp_path / "there" / "big file").read_bytes() == local.read_bytes()
        await client(server, port, lambda c: c.fetch("big file", str(tmp_path / "back")))
        assert (tmp_path / "back").read_bytes() == local.read_bytes()


async def test_an_empty_file_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "local").touch()
    async with serving(tmp_path / "there") as (server, (_, port)):
        assert await client(server, port, lambda c: c.put(str(tmp_path / "local"), "empty")) == 0
        assert await client(server, port, lambda c: c.fetch("empty", str(tmp_path / "back"))) == 0


async def test_reading_and_writing_parts(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        assert await client(server, port, lambda c: c.write(b"hello", "f", "wct")) == 5
        assert await client(server, port, lambda c: c.write(b"HE", "f", "w", offset=0)) == 2
        assert await client(server, port, lambda c: c.read("f", 100)) == b"HEllo"
        assert await client(server, port, lambda c: c.read("f", 3, offset=2)) == b"llo"
        large = b"x" * 1_000_000
        assert await client(server, port, lambda c: c.write(large, "g", "wct")) == len(large)
        assert len(await client(server, port, lambda c: c.read("g", 2_000_000))) == len(large)
    opened = side.calls.count(chirp.Syscall.OPEN)
    assert opened == side.calls.count(chirp.Syscall.CLOSE) > 0


async def test_names_status_and_directories(tmp_path: Path) -> None:
    (tmp_path / "a\nb c").write_text("xyz")
    async with serving(tmp_path) as (server, (_, port)):
        await client(server, port, lambda c: c.rename("a\nb c", "d"))
        await client(server, port, lambda c: c.mkdir("sub", 0o755))
        assert await client(server, port, lambda c: c.getdir(".")) == ["d", "sub"]
        assert (await client(server, port, lambda c: c.stat("d")))["size"] == 3
        await client(server, port, lambda c: c.unlink("d"))
        assert not (tmp_path / "d").exists()
        assert await client(server, port, lambda c: c.whoami()) == "alice"


async def test_what_the_submit_side_refuses_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        with pytest.raises(HTChirp.DoesntExist):
            await client(server, port, lambda c: c.fetch("missing", str(tmp_path / "back")))
        side.lost = True
        with pytest.raises(HTChirp.Offline):
            await client(server, port, lambda c: c.unlink("x"))


async def test_attributes_now_and_with_the_next_update(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        await client(server, port, lambda c: c.set_job_attr("Progress", "1 + 2"))
        assert side.ad.eval("Progress") == 3
        assert await client(server, port, lambda c: c.get_job_attr("Owner")) == '"alice"'
        assert await client(server, port, lambda c: c.get_job_attr("Nothing")) == "UNDEFINED"
        await client(server, port, lambda c: c.set_job_attr_delayed("ChirpDone", "0.5"))
        assert await client(server, port, lambda c: c.get_job_attr_delayed("chirpdone")) == "0.5"
        assert await client(server, port, lambda c: c.get_job_attr_delayed("JobPrio")) == "7"
        with pytest.raises(HTChirp.NotAuthorized):
            await client(server, port, lambda c: c.set_job_attr_delayed("Owner", '"root"'))
    assert chirp.as_ad(server.delayed.pending())["ChirpDone"] == 0.5


async def test_a_line_for_the_users_log_is_a_generic_event_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        await client(server, port, lambda c: c.ulog("half\n...\n005 (1.0) done" + "x" * 500))
    (event,) = side.events
    assert (event["MyType"], event["EventTypeNumber"]) == ("GenericEvent", 8)
    assert event["Info"].startswith("half ... 005 (1.0) done")
    assert len(event["Info"]) == 127


# -- who gets nothing -----------------------------------------------------------------------------------------------


async def raw(port: int, *lines: bytes) -> bytes:
    """All that comes back. A server that hangs up with something unread may take back its last answer (TCP's reset)."""
    answer = b""
    with trio.fail_after(60), contextlib.suppress(trio.BrokenResourceError):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for line in lines:
                await stream.send_all(line)
            await stream.send_eof()
            async for piece in stream:
                answer += piece
    return answer


@pytest.mark.parametrize(
    "first", [b"cookie wrong\n", b"cookie\n", b"get_job_attr Owner\n", b"cookie \xff\xfe\n", b"\n", b"cookie a b\n"]
)
async def test_without_the_cookie_there_is_nothing_but_a_refusal(tmp_path: Path, first: bytes, monkeypatch) -> None:
    monkeypatch.setattr(chirpserver, "WRONG_COOKIE_S", 0.01)
    async with serving(tmp_path) as (_, (side, port)):
        assert await raw(port, first) == b"-1\n"
        await raw(port, first, b"unlink x\n")
    assert side.calls == []


async def test_many_strangers_push_out_one_another_and_not_the_job(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chirpserver, "COOKIE_WITHIN_S", 1000.0)
    async with serving(tmp_path) as (server, (side, port)), trio.open_nursery() as nursery:
        strangers = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3 * chirpserver.MAX_STRANGERS)]
        await client(server, port, lambda c: c.get_job_attr("Owner"))
        with trio.fail_after(60):
            assert await strangers[0].receive_some() == b""
        for stranger in strangers:
            await stranger.aclose()
        nursery.cancel_scope.cancel()
    assert side.calls == [chirp.Syscall.GET_JOB_ATTR]


@pytest.mark.parametrize(
    ("wishes", "request_line"),
    [
        (frozenset({"updates", "delayed"}), b"unlink x"),
        (frozenset({"files", "delayed"}), b"set_job_attr A 1"),
        (frozenset({"files", "updates"}), b"set_job_attr_delayed ChirpA 1"),
        (ALL, b"get_job_attr ClaimId"),
        (ALL, b"set_job_attr _condor_priv_x 1"),
    ],
)
async def test_what_the_job_did_not_ask_for_or_may_never_have(
    tmp_path: Path, wishes: frozenset[str], request_line: bytes
) -> None:
    async with serving(tmp_path, wishes) as (server, (side, port)):
        answer = await raw(port, b"cookie " + server.cookie.encode() + b"\n", request_line + b"\n")
    assert answer == b"0\n-2\n"
    assert side.calls == []


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (b"read 3 100", Code.BAD_FD),
        (b"close 5", Code.BAD_FD),
        (b"lseek 0 0 0", Code.BAD_FD),
        (b"nonsense", Code.INVALID_REQUEST),
        (b"unlink", Code.INVALID_REQUEST),
        (b"unlink a b", Code.INVALID_REQUEST),
        (b"unlink a\0b", Code.INVALID_REQUEST),
        (b"mkdir a 99999999999999999999", Code.INVALID_REQUEST),
        (b"mkdir a b", Code.INVALID_REQUEST),
        (b"set_job_attr A }{", Code.INVALID_REQUEST),
        (b"set_job_attr A 1\\\nB\\ =\\ 2", Code.INVALID_REQUEST),
        (b"set_job_attr A=1 2", Code.INVALID_REQUEST),
        (b"set_job_attr_delayed ChirpA " + b"1" * 1000, Code.TOO_BIG),
        (b"whoami -1", Code.INVALID_REQUEST),
        (b"putfile x 420 -5", Code.INVALID_REQUEST),
    ],
)
async def test_a_hostile_request_reaches_nobody(tmp_path: Path, request_line: bytes, code: Code) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        answer = await raw(port, b"cookie " + server.cookie.encode() + b"\n", request_line + b"\n", b"version\n")
    assert answer == b"0\n%d\n2\n" % code
    assert side.calls == []


async def test_a_line_without_end_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, (side, port)):
        answer = await raw(port, b"cookie " + server.cookie.encode() + b"\n", b"x" * 1_000_000)
    assert answer in (b"0\n-5\n", b"0\n", b"")
    assert side.calls == []


async def test_too_many_open_files_and_too_large_a_write(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    async with serving(tmp_path) as (server, (side, port)):
        opens = b"open f r 0\n" * (chirpserver.MAX_OPEN_FILES + 1)
        answer = await raw(
            port, b"cookie " + server.cookie.encode() + b"\n", opens, b"write 1 99999999\n", b"version\n"
        )
    lines = [line for line in answer.split(b"\n") if b" " not in line]
    assert lines[-3:] == [b"-9", b"-5", b""]  # and no answer after it: the data would be taken for requests
    assert side.calls.count(chirp.Syscall.OPEN) == side.calls.count(chirp.Syscall.CLOSE) == chirpserver.MAX_OPEN_FILES


async def test_a_stranger_does_not_stay(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chirpserver, "COOKIE_WITHIN_S", 0.05)
    async with serving(tmp_path) as (_, (_, port)):
        with trio.fail_after(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"cook")
                assert await stream.receive_some() == b""


async def test_a_file_of_one_shadow_is_no_file_of_the_next(tmp_path: Path) -> None:
    """There the number may be that of its log or its socket."""
    (tmp_path / "f").write_text("secret")
    async with serving(tmp_path) as (server, (side, port)):
        with trio.fail_after(60):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"cookie " + server.cookie.encode() + b"\n")
            assert await stream.receive_some() == b"0\n"
            await stream.send_all(b"open f r 0\n")
            number = (await stream.receive_some()).split(b"\n")[0]
            side.takes += 1
            asked = len(side.calls)
            for request_line in (b"read " + number + b" 6\n", b"close " + number + b"\n"):
                await stream.send_all(request_line)
                assert await stream.receive_some() == b"-12\n"
            await stream.aclose()
    assert len(side.calls) == asked


async def test_more_connections_than_a_job_may_have(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chirpserver, "MAX_CONNECTIONS", 2)
    async with serving(tmp_path) as (server, (_, port)):
        cookie = b"cookie " + server.cookie.encode() + b"\n"
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        with trio.fail_after(60):
            for stream in streams:
                await stream.send_all(cookie)
                assert await stream.receive_some() == b"0\n"
            assert await raw(port, cookie) == b""
            await streams[0].aclose()
            while await raw(port, cookie) != b"0\n":  # noqa: ASYNC110 - the server notices in its own time
                await trio.sleep(0.01)
        await streams[1].aclose()


async def test_a_host_without_a_port_is_told_of(tmp_path: Path, monkeypatch) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    with pytest.raises(StageFailed, match="no port"):
        async with serving(tmp_path):
            pass


async def test_many_long_reads_and_writes_fill_no_memory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(chirp.DATA_BYTES))
    async with serving(tmp_path) as (server, (side, port)), contextlib.AsyncExitStack() as clients:
        tracemalloc.start()
        for number in range(chirpserver.MAX_CONNECTIONS):
            stream = await clients.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
            reads = number % 2
            await stream.send_all(
                b"cookie " + server.cookie.encode() + (b"\nopen f r 0\n" if reads else b"\nopen g wc 420\n")
            )
            opened = b""
            while opened.count(b"\n") < 3:  # 0, the number, its status
                opened += await stream.receive_some()
            request = b"read " if reads else b"write "
            await stream.send_all(request + opened.split(b"\n")[1] + b" %d\n" % chirp.DATA_BYTES)
            if not reads:
                await stream.send_all(bytes(chirp.DATA_BYTES - 1))
        with trio.fail_after(60):
            while side.calls.count(chirp.Syscall.READ) < 16 * chirpserver.MAX_LONG_READS:  # noqa: ASYNC110 - in its own time
                await trio.sleep(0.01)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 6 * chirp.DATA_BYTES


@pytest.mark.parametrize("refusal", ["bad number", "too much at once", "no shadow"])
async def test_the_data_of_a_write_that_is_refused_is_no_request(tmp_path: Path, refusal: str) -> None:
    (tmp_path / "f").touch()
    async with serving(tmp_path) as (server, (side, port)):
        with trio.fail_after(60):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"cookie " + server.cookie.encode() + b"\nopen f w 0\n")
            opened = b""
            while opened.count(b"\n") < 3:
                opened += await stream.receive_some()
            number = opened.split(b"\n")[1]
            side.lost = refusal == "no shadow"
            length = 300_000 if refusal == "too much at once" else 20
            what = {"too much at once": b"swrite %s %d 0 1 1\n" % (number, length)}.get(
                refusal, b"write %s 20\n" % number
            )
            if refusal == "bad number":
                what = b"write 999 20\n"
            await stream.send_all(what + b"unlink f\n".ljust(length, b"\n") + b"version\n")
            answer = b""
            while answer.count(b"\n") < 2:
                answer += await stream.receive_some()
            await stream.aclose()
    assert answer.split(b"\n")[0] in (b"-12", b"-5", b"-17")
    assert answer.split(b"\n")[1] == b"2"
    assert (tmp_path / "f").exists()


# -- words and rules ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x0b\x0c"), min_size=1), max_size=4)
)
def test_words_that_the_wheel_quotes_come_back(words: list[str]) -> None:
    assert split_words(" ".join(map(quote, words)).encode()) == words


@given(st.binary(max_size=200))
def test_any_line_is_a_request_or_refused(line: bytes) -> None:
    with contextlib.suppress(Refused):
        parse(line, ALL)


def test_delayed_attributes_are_few_and_only_what_was_sent_is_forgotten() -> None:
    delayed = Delayed(["Chirp*", "my?"], 2)
    delayed.set("ChirpA", "1")
    delayed.set("chirpB", '"x"')
    for name, code in (("ChirpC", Code.TOO_MANY_OPEN), ("myX", Code.NOT_AUTHORIZED), ("Other", Code.NOT_AUTHORIZED)):
        with pytest.raises(Refused) as refused:
            delayed.set(name, "1")
        assert refused.value.code == code
    pending = delayed.pending()
    delayed.set("CHIRPA", "2")
    delayed.sent(pending)
    assert delayed.pending() == {"CHIRPA": "2"}
    assert delayed.get("chirpa", ClassAd()) == "2"


@given(st.text(max_size=60))
def test_an_expression_is_one_attribute_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        chirp.checked_expression(text)
        assert list(chirp.as_ad({"ChirpX": text})) == ["ChirpX"]


def test_what_waits_for_an_update_is_never_more_than_one_ad_holds() -> None:
    """Else the update could not be made, and neither could the job's last report."""
    delayed, long = Delayed(["*"], 1000), "+".join("1" * 497)
    codes = []
    for number in range(60):
        try:
            delayed.set(f"Chirp{number}", long)
        except Refused as refusal:
            codes.append(refusal.code)
    kept = len(delayed.pending())
    assert codes == [Code.TOO_BIG] * (60 - kept)
    assert 20 < kept < 30
    delayed.set("Chirp0", "1")
    delayed.set("Chirp59", long)
    assert len(chirp.as_ad(delayed.pending())) == kept + 1
