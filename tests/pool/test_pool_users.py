"""The users' door: who may do what, and the ways in which a submission can be wrong. Refused: nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from demo import grid
from demo.accounts import Account
from pilot import credentials, rpc
from pool import messages as m
from pool.submission import owner_name
from tests.pool.conftest import LivePool, eventually, job_ad
from tests.pool.fake_ep import FakeEP


async def leftovers(pool: LivePool) -> list[str]:
    return [path.name for path in await trio.Path(pool.places.spool).iterdir()]


async def refused(pool: LivePool, code: str, *steps: tuple[Any, list[bytes]]) -> str:
    """The last step is refused with this code; nothing stays."""
    async with await pool.channel() as channel:
        for message, data in steps[:-1]:
            await give(channel, message, data)
        with pytest.raises(rpc.RpcRefused) as caught:
            await give(channel, *steps[-1])
        assert caught.value.code == code
        assert await channel.call(m.ListSlots(0)) == m.Slots((), False)  # the connection lives on
    await eventually(lambda: leftovers(pool), lambda names: names == [])
    assert pool.queue.active_jobs() == []
    return caught.value.text


async def give(channel: rpc.Channel, message: Any, data: list[bytes]) -> Any:
    fds = []
    try:
        for each in data:
            fds.append(os.memfd_create("x"))
            os.write(fds[-1], each)
        return await channel.call(message, fds)
    finally:
        for fd in fds:
            os.close(fd)


BEGIN: tuple[Any, list[bytes]] = (m.Begin(False), [])
FILE: tuple[Any, list[bytes]] = (m.PutFiles(0, (1,)), [b"x"])
INPUTS: tuple[Any, list[bytes]] = (m.PutInputs(0, (m.InputEntry("run.sh", 0o755, 0),)), [])
JOB: tuple[Any, list[bytes]] = (m.PutJobs((m.NewJob(job_ad(), 0),)), [])


def inputs(*entries: tuple[str, int | None]) -> tuple[Any, list[bytes]]:
    return m.PutInputs(0, tuple(m.InputEntry(name, 0o644, key) for name, key in entries)), []


WRONG: dict[str, tuple[str, list[tuple[Any, list[bytes]]]]] = {
    "commit without begin": ("order", [(m.Commit(), [])]),
    "begin twice": ("order", [BEGIN, BEGIN]),
    "no job": ("empty", [BEGIN, (m.Commit(), [])]),
    "a file out of turn": ("order", [BEGIN, (m.PutFiles(3, (1,)), [b"x"])]),
    "fewer descriptors than files": ("order", [BEGIN, (m.PutFiles(0, (1, 1)), [b"x"])]),
    "no descriptor": ("order", [BEGIN, (m.PutFiles(0, ()), [])]),
    "an absolute name": ("bad-job", [BEGIN, FILE, inputs(("/etc/passwd", 0))]),
    "a name that leads out": ("bad-job", [BEGIN, FILE, inputs(("../x", 0))]),
    "a name with NUL": ("bad-job", [BEGIN, FILE, inputs(("a\0b", 0))]),
    "a name of the sandbox": ("bad-name", [BEGIN, FILE, inputs(("_condor_stdout", 0))]),
    "a key that is not there": ("order", [BEGIN, FILE, inputs(("a", 1))]),
    "a negative key": ("order", [BEGIN, FILE, inputs(("a", -1))]),
    "the same name twice": (
        "name-twice",
        [BEGIN, FILE, inputs(("run.sh", 0), ("run.sh", 0)), JOB, (m.Commit(), [])],
    ),
    "a file before its directory": ("order", [BEGIN, FILE, inputs(("run.sh", 0), ("d/x", 0)), JOB, (m.Commit(), [])]),
    "a set out of turn": ("order", [BEGIN, FILE, (m.PutInputs(5, ()), [])]),
    "a job without its set": ("order", [BEGIN, FILE, JOB]),
    "a job without its executable": ("bad-job", [BEGIN, FILE, inputs(("other", 0)), JOB]),
    "a bad ad": ("bad-job", [BEGIN, FILE, INPUTS, (m.PutJobs((m.NewJob(job_ad(Owner='"root"'), 0),)), [])]),
    "a proxy that was not announced": ("order", [BEGIN, (m.GiveProxy(b"x", "px"), [])]),
    "an announced proxy that is not given": (
        "order",
        [(m.Begin(True), []), FILE, INPUTS, JOB, (m.Commit(), [])],
    ),
    "garbage for a proxy": ("proxy-broken", [(m.Begin(True), []), (m.GiveProxy(b"garbage", "px"), [])]),
    "a proxy's name with a directory": ("bad-name", [(m.Begin(True), []), (m.GiveProxy(b"x", "a/b"), [])]),
    "a reply as a request": ("order", [(m.Done(), [])]),
}


@pytest.mark.parametrize("case", sorted(WRONG))
async def test_a_wrong_submission_leaves_nothing(start_pool: Callable[..., Any], case: str) -> None:
    code, steps = WRONG[case]
    async with start_pool() as pool:
        assert await refused(pool, code, *steps)


async def test_only_plain_files_are_taken(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, await pool.channel() as channel:
        reading, writing = os.pipe()
        try:
            await channel.call(m.Begin(False))
            with pytest.raises(rpc.RpcRefused, match="plain files"):
                await channel.call(m.PutFiles(0, (1,)), [reading])
        finally:
            os.close(reading)
            os.close(writing)
        await eventually(lambda: leftovers(pool), lambda names: names == [])


async def test_limits_of_a_submission(start_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from pool import main

    rules = main.Rules
    monkeypatch.setattr(
        main, "Rules", lambda *said: evolve(rules(*said), max_files=2, max_bytes=10, max_ad_bytes=1 << 20)
    )
    async with start_pool() as pool:
        text = await refused(pool, "bad-file", BEGIN, (m.PutFiles(0, (6, 6)), [b"123456", b"123456"]))
        assert "6 bytes, where 4 are left" in text
        await refused(pool, "too-many-files", BEGIN, (m.PutFiles(0, (1, 1, 1)), [b"1", b"2", b"3"]))
        large = m.PutJobs((m.NewJob(job_ad(Note=f'"{"x" * 100_000}"'), 0),))
        text = await refused(pool, "too-large", BEGIN, FILE, INPUTS, *[(large, [])] * 11)
        assert "more than 1 MiB; hand the jobs in by several submissions" in text


async def test_an_expired_and_a_foreign_proxy_are_refused(
    start_pool: Callable[..., Any], test_grid: grid.Grid, tmp_path: Path
) -> None:
    user = test_grid.user("Alice Adams")
    foreign = grid.make_grid(tmp_path / "elsewhere", name="Other CA").user("Alice Adams")
    async with start_pool() as pool:
        for source, code in (
            (grid.make_proxy(user, lifetime_s=-10), "proxy-expired"),
            (grid.make_proxy(foreign), "untrusted"),
        ):
            async with await pool.channel() as channel:
                begun = await channel.call(m.Begin(True))
                answer = _sign_anything(source, begun.request)
                with pytest.raises(rpc.RpcRefused) as caught:
                    await channel.call(m.GiveProxy(answer, "px"))
                assert code in caught.value.code
            await eventually(lambda: leftovers(pool), lambda names: names == [])


def _sign_anything(source: grid.Certified, request: bytes) -> bytes:
    """A delegation without the checks that ours makes before it signs."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    asked = x509.load_der_x509_csr(request)
    made = grid.make_proxy(
        source, lifetime_s=-5 if source.certificate.not_valid_after_utc.timestamp() < time.time() else 600
    )
    builder = x509.CertificateBuilder(
        issuer_name=source.certificate.subject,
        subject_name=made.certificate.subject,
        public_key=asked.public_key(),
        serial_number=made.certificate.serial_number,
        not_valid_before=made.certificate.not_valid_before_utc,
        not_valid_after=made.certificate.not_valid_after_utc,
        extensions=list(made.certificate.extensions),
    )
    leaf = builder.sign(source.key, hashes.SHA256())
    chain = (leaf, source.certificate, *source.chain)
    return b"".join(certificate.public_bytes(serialization.Encoding.DER) for certificate in chain)


async def test_the_pools_copy_of_a_proxy_is_private(start_pool: Callable[..., Any], test_grid: grid.Grid) -> None:
    proxy = grid.make_proxy(test_grid.user("Alice Adams"))
    async with start_pool() as pool:
        cluster = await pool.submit(job_ad(), proxy=proxy.pem)
        paths = [path async for path in _walk(trio.Path(pool.places.spool))]
        for path in paths:
            mode = (await path.stat()).st_mode & 0o777
            assert mode == (0o700 if await path.is_dir() else 0o600), path
        stored = await (trio.Path(pool.places.spool) / str(cluster) / "proxy.pem").read_bytes()
        assert credentials.load(stored).identity == proxy.identity
        key_line = proxy.pem.split(b"PRIVATE KEY-----\n")[1].splitlines()[1]
        assert key_line not in stored  # the user's key never came


async def _walk(place: trio.Path) -> Any:
    for path in await place.iterdir():
        yield path
        if await path.is_dir():
            async for deeper in _walk(path):
                yield deeper


async def test_owners_by_their_proxies(start_pool: Callable[..., Any], test_grid: grid.Grid) -> None:
    alice, bob = (grid.make_proxy(test_grid.user(name)) for name in ("Alice Adams", "Bob Brown"))
    async with start_pool(sailplane_pool_owner_from_proxy=True) as pool:
        first = await pool.submit(job_ad(), proxy=alice.pem)
        second = await pool.submit(job_ad(), proxy=bob.pem)
        assert (await pool.row(first)).owner == "alice_adams"
        assert (await pool.row(second)).owner == "bob_brown"
        async with await pool.channel() as channel:
            with pytest.raises(rpc.RpcRefused, match="x509userproxy = FILE"):
                await channel.call(m.Begin(False))


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ("/DC=org/CN=Alice Adams", "alice_adams"),
        ("/O=x/CN=9 lives", "user_9_lives"),
        ("/O=x/CN=Ünïcode!", "n_code"),
        ("/O=x/CN=!!!", "user"),
        ("/O=x/CN=" + "a" * 100, "a" * 32),
    ],
)
def test_an_owners_name_looks_like_an_account(identity: str, expected: str) -> None:
    assert owner_name(identity) == expected


async def test_nobody_is_told_what_is_not_theirs(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, await pool.channel() as channel:
        for message in (
            m.RunsOf(m.Target(77, None), 0),
            m.Remove(m.Target(77, 0), False),
            m.Wait(m.Target(77, 0), 1.0),
        ):
            with pytest.raises(rpc.RpcRefused, match="no job 77"):
                await channel.call(message)


async def test_wait_answers_when_all_is_over_or_the_time_is_up(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool:
        cluster = await pool.submit(job_ad())
        async with await pool.channel() as channel:
            reply = await channel.call(m.Wait(m.Target(cluster, None), 0.01))
            assert (reply.more, reply.rows[0].state) == (True, "idle")
            async with FakeEP(pool.address, pool.places.tokens).running():
                reply = await channel.call(m.Wait(m.Target(cluster, None), 20.0))
            assert (reply.more, reply.rows[0].state) == (False, "completed")


async def test_a_large_output_comes_in_pages(start_pool: Callable[..., Any]) -> None:
    async with start_pool() as pool, FakeEP(pool.address, pool.places.tokens).running() as ep:

        async def body(starter: Any) -> None:
            await starter.begin()
            await starter.stage_out({"d/": b""} | {f"d/{i}": str(i).encode() for i in range(150)})
            await starter.exit()

        ep.body = body
        cluster = await pool.submit(job_ad())
        await pool.until(cluster, "completed")
        found: dict[str, bytes] = {}
        async with await pool.channel() as channel:
            first, more = 0, True
            while more:
                page, fds = await channel.call_with_fds(m.Fetch(cluster, 0, first))
                files = [entry for entry in page.entries if entry.size is not None]
                for entry, fd in zip(files, fds, strict=True):
                    found[entry.name] = os.pread(fd, 100, 0)
                    with pytest.raises(OSError, match="Bad file"):
                        os.write(fd, b"x")  # read only
                    os.close(fd)
                first, more = first + len(page.entries), page.more
        assert found == {f"d/{i}": str(i).encode() for i in range(150)}


# Other accounts


@pytest.fixture
def open_directory() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="sptest-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


def as_account(account: Account, path: Path, *messages: Any) -> list[Any]:
    """What the pool answers to this account: a child process with its uid asks."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            answers = []
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                for message in messages:
                    rpc.send_blocking(sock, m.POOL, message)
                    answers.append(rpc.receive_blocking(sock, m.POOL)[0])
            os.write(writing, b"".join(len(data := m.POOL.encode(each)).to_bytes(4, "big") + data for each in answers))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(m.POOL.decode(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


@pytest.mark.needs_root
async def test_other_accounts_see_a_job_and_nothing_of_it(
    start_pool: Callable[..., Any], open_directory: Path, accounts: Mapping[str, Account]
) -> None:
    path = open_directory / "socket"
    async with start_pool(sailplane_pool_socket=path) as pool:
        cluster = await pool.submit(job_ad(Arguments='"secret words"'))
        target = m.Target(cluster, None)
        answers = await trio.to_thread.run_sync(
            as_account,
            accounts["bob"],
            path,
            m.ListJobs(0, -1, True, True),
            m.ListJobs(0, -1, False, True),
            m.RunsOf(target, 0),
            m.Remove(target, True),
            m.Wait(target, 0.0),
            m.Fetch(cluster, 0, 0),
            m.Begin(False),
        )
        every, own, *no, begun = answers
        (row,) = every.rows
        assert (row.owner, row.command, row.reason) == ("root", "", "")
        assert own.rows == ()
        assert [type(answer).__name__ for answer in no] == ["Error"] * 4
        assert {answer.code for answer in no} == {"no-job"}
        assert isinstance(begun, m.Begun)
        assert (await pool.row(cluster)).state == "idle"
