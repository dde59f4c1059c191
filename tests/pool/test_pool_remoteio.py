"""What a job may ask of the embedded pool's shadow for itself, and what it may not reach."""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from classad2 import ClassAd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cedar.classads import parse_old
from cedar.codec import Reader, encode
from cedar.commands import OpenFlag, Syscall
from cedar.errors import PeerFault
from cedar.filetransfer import TransferLimits
from pool.jobad import BadJob, with_attributes
from pool.model import Entry
from pool.remoteio import MAX_FILES, MAX_OPEN, MAX_PIECE_BYTES, NoToken, RemoteIO
from pool.spool import Spool
from pool.transfers import Transfer

CREATE = OpenFlag.RDWR | OpenFlag.CREAT | OpenFlag.TRUNC
EPERM_LIKE, ENOENT, EBADF, EEXIST, EINVAL, EMFILE, ENOSPC = 13, 2, 9, 17, 22, 24, 28


@pytest.fixture
def remote(tmp_path: Path) -> RemoteIO:
    spool = Spool(tmp_path)
    spool.make_cluster(1)
    spool.input(1, 0).write_bytes(b"input")
    entries = [Entry("in.txt", 0o644, 5, 0), Entry("sub", 0o755)]
    transfer = Transfer(spool, 1, 7, entries, None, None, TransferLimits(max_bytes=1000), lambda: None)
    return RemoteIO(
        ClassAd({"Owner": "alice", "JobPrio": 3, "ClaimId": "s3cret"}), transfer, "alice", tmp_path / "tokens"
    )


def ask(remote: RemoteIO, call: Syscall, *arguments: Any) -> tuple[Any, ...]:
    assert remote.serves(call)
    return remote.answer(call, Reader(encode(arguments, keyed=True), keyed=True))


def opened(remote: RemoteIO, name: str, flags: int) -> Any:
    return ask(remote, Syscall.OPEN, int(flags), 0o644, name)[0]


def test_input_is_read_and_never_written(remote: RemoteIO) -> None:
    number = opened(remote, "in.txt", 0)
    assert ask(remote, Syscall.READ, number, 100) == (5, b"input")
    assert ask(remote, Syscall.WRITE, number, 1, b"x") == (-1, EBADF)
    assert ask(remote, Syscall.OPEN, int(OpenFlag.WRONLY), 0, "in.txt") == (-1, ENOENT)
    assert ask(remote, Syscall.UNLINK, "in.txt") == (-1, ENOENT)
    assert remote.transfer.spool.input(1, 0).read_bytes() == b"input"


def test_what_is_written_comes_beside_the_output(remote: RemoteIO, tmp_path: Path) -> None:
    number = opened(remote, "made", CREATE)
    assert ask(remote, Syscall.WRITE, number, 4, b"data") == (4,)
    assert ask(remote, Syscall.PWRITE, number, 1, 0, b"D") == (1,)
    assert ask(remote, Syscall.LSEEK, number, 0, 0) == (0,)
    assert ask(remote, Syscall.READ, number, 10) == (4, b"Data")
    assert ask(remote, Syscall.FSTAT, number)[1].split()[7] == b"4"
    assert ask(remote, Syscall.CLOSE, number) == (0,)
    opened(remote, "also", CREATE)
    ask(remote, Syscall.RENAME, "also", "other")
    assert ask(remote, Syscall.GETDIR, ".")[1].split() == ["in.txt", "made", "other", "sub"]
    assert ask(remote, Syscall.UNLINK, "other") == (0,)
    out = remote.transfer.spool.make_outputs(1, 7)
    assert remote.add_outputs(out, {"made"}, 3) == []
    assert remote.add_outputs(out, set(), 3) == [("made", 4, 3)]
    assert (out / "3").read_bytes() == b"Data"
    remote.close()
    assert not remote.transfer.spool.written(1, 7).exists()
    assert (out / "3").read_bytes() == b"Data"


@pytest.mark.parametrize("name", ["/etc/passwd", "../1/in/0", "a/b", "..", ".", "", "x" * 5000, "a\nb", "http://x"])
def test_a_name_never_becomes_a_path(remote: RemoteIO, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for flags in (0, int(CREATE)):
        assert ask(remote, Syscall.OPEN, flags, 0o644, name)[0] == -1
    assert sorted(tmp_path.rglob("*")) == before


def test_files_bytes_and_pieces_are_bounded(remote: RemoteIO) -> None:
    number = opened(remote, "big", CREATE)
    assert ask(remote, Syscall.WRITE, number, 1001, b"x" * 1001) == (-1, ENOSPC)
    assert ask(remote, Syscall.PWRITE, number, 1, 10**12, b"x") == (-1, ENOSPC)
    assert ask(remote, Syscall.READ, number, MAX_PIECE_BYTES + 1) == (-1, EINVAL)
    assert ask(remote, Syscall.READ, 99, 1) == (-1, EBADF)
    for _ in range(MAX_OPEN - 1):
        opened(remote, "big", 0)
    assert ask(remote, Syscall.OPEN, 0, 0, "big") == (-1, EMFILE)
    for opened_file in range(3, 3 + MAX_OPEN):
        ask(remote, Syscall.CLOSE, opened_file)
    for count in range(MAX_FILES - 1):
        ask(remote, Syscall.CLOSE, opened(remote, f"f{count}", CREATE))
    assert ask(remote, Syscall.OPEN, int(CREATE), 0, "one-more") == (-1, ENOSPC)
    assert ask(remote, Syscall.OPEN, int(CREATE | OpenFlag.EXCL), 0, "f1") == (-1, EEXIST)


def test_attributes_of_the_job(remote: RemoteIO) -> None:
    assert ask(remote, Syscall.GET_JOB_ATTR, "Owner") == (0, '"alice"')
    assert ask(remote, Syscall.GET_JOB_ATTR, "Nothing") == (0, "UNDEFINED")
    assert ask(remote, Syscall.SET_JOB_ATTR, "JobPrio * 2", "Mine") == (0,)
    assert remote.ad.eval("Mine") == 6
    assert ask(remote, Syscall.GET_JOB_ATTR, "Mine") == (0, "JobPrio * 2")
    assert ask(remote, Syscall.SET_JOB_ATTR, "5", "mine") == (0,)
    assert remote.changed == {"mine": "5"}


@pytest.mark.parametrize(
    ("name", "expression", "number"),
    [
        ("Owner", '"root"', EPERM_LIKE),
        ("owner", '"root"', EPERM_LIKE),
        ("ClaimId", '"x"', EPERM_LIKE),
        ("_condor_x", "1", EPERM_LIKE),
        ("A", "}{", EINVAL),
        ("A = 1\nOwner", "2", EINVAL),
    ],
)
def test_attributes_that_are_the_pools(remote: RemoteIO, name: str, expression: str, number: int) -> None:
    before = str(remote.ad)
    assert ask(remote, Syscall.SET_JOB_ATTR, expression, name) == (-1, number)
    assert str(remote.ad) == before
    assert remote.changed == {}
    assert ask(remote, Syscall.GET_JOB_ATTR, "ClaimId") == (-1, EPERM_LIKE)


@pytest.mark.parametrize(
    "update",
    [
        'JobState = "Running"\nChirpNote = 7\nNumPids = 2\n',
        'JobState = "Running"\nChirpDelayedAttrs = [ ChirpNote = 7; Owner = "root" ]\nChirpOther = 1\n',
    ],
    ids=["as before 25.4", "since 25.4"],
)
def test_what_a_job_sets_for_the_next_update(remote: RemoteIO, update: str) -> None:
    remote.learn(parse_old(update))
    assert remote.changed == {"ChirpNote": "7"}
    assert remote.ad["Owner"] == "alice"
    assert "ChirpDelayedAttrs" not in remote.ad


def give(tmp_path: Path, name: str, data: bytes, mode: int = 0o600) -> None:
    directory = tmp_path / "tokens" / "alice"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)
    (directory / name).chmod(mode)


def test_tokens_by_service(remote: RemoteIO, tmp_path: Path) -> None:
    give(tmp_path, "box_x.use", b"secret")
    one, ad, end = remote.tokens(["box*x"])
    assert (one, end) == (1, 0)
    assert ad["Service"] == "box*x"
    assert base64.b64decode(ad["Data"]) == b"secret"
    assert remote.tokens([]) == (0,)


def test_tokens_that_are_not_given(remote: RemoteIO, tmp_path: Path) -> None:
    give(tmp_path, "open.use", b"s3cret", mode=0o644)
    give(tmp_path, "empty.use", b"")
    give(tmp_path, "large.use", b"x" * 70_000)
    os.symlink("/etc/passwd", tmp_path / "tokens" / "alice" / "link.use")
    os.mkfifo(tmp_path / "tokens" / "alice" / "fifo.use", 0o600)
    for service in ("missing", "open", "empty", "large", "link", "fifo", "../alice/open", ".hidden"):
        with pytest.raises(NoToken) as refused:
            remote.tokens([service])
        assert "s3cret" not in str(refused.value)


def test_an_ad_with_what_the_job_has_set() -> None:
    text = 'Cmd = "x"\nMine = 1\nOther = "a \\"b"\n'
    assert with_attributes(text, {"mine": "2 + 3", "New": '"y"'}) == (
        'Cmd = "x"\nOther = "a \\"b"\nmine = 2 + 3\nNew = "y"\n'
    )
    for bad in ({"Cmd": '""'}, {"RequestMemory": '"much"'}, {"Long": '"' + "x" * 200_000 + '"'}, {"Owner": '"root"'}):
        with pytest.raises(BadJob):
            with_attributes(text, bad)


def test_a_file_that_was_removed_counts_as_long_as_it_is_written(remote: RemoteIO) -> None:
    number = opened(remote, "gone", CREATE)
    assert ask(remote, Syscall.WRITE, number, 900, b"x" * 900) == (900,)
    assert ask(remote, Syscall.UNLINK, "gone") == (0,)
    assert ask(remote, Syscall.WRITE, number, 200, b"x" * 200) == (-1, ENOSPC)
    other = opened(remote, "other", CREATE)
    assert ask(remote, Syscall.WRITE, other, 200, b"x" * 200) == (-1, ENOSPC)
    assert ask(remote, Syscall.CLOSE, number) == (0,)
    assert ask(remote, Syscall.WRITE, other, 200, b"x" * 200) == (200,)


def test_room_is_reckoned_from_where_a_write_ends(remote: RemoteIO) -> None:
    number = opened(remote, "hole", CREATE)
    assert ask(remote, Syscall.LSEEK, number, 1 << 40, 0) == (1 << 40,)
    assert ask(remote, Syscall.WRITE, number, 1, b"x") == (-1, ENOSPC)
    assert ask(remote, Syscall.LSEEK, number, 0, 0) == (0,)
    for _ in range(3):  # over the same place
        assert ask(remote, Syscall.PWRITE, number, 900, 0, b"x" * 900) == (900,)
    appended = opened(remote, "hole", OpenFlag.WRONLY | OpenFlag.APPEND)
    assert ask(remote, Syscall.PWRITE, appended, 200, 0, b"x" * 200) == (-1, ENOSPC)
    assert ask(remote, Syscall.WRITE, appended, 100, b"x" * 100) == (100,)


@pytest.mark.parametrize("whence", [3, -1, 1 << 40, -(1 << 40)])
def test_a_seek_from_nowhere_is_refused(remote: RemoteIO, whence: int) -> None:
    assert ask(remote, Syscall.LSEEK, opened(remote, "in.txt", 0), 0, whence) == (-1, EINVAL)


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, -1, 100, 2**31, -(2**31), 1 << 40, 2**63 - 1, -(2**63)])
TEXTS = st.sampled_from(["made", "in.txt", "", "..", "/etc/passwd", "a/b", "\udcff", "A = 1", "JobPrio", "1 +", "a\nb"])
SIGNATURES = {
    Syscall.OPEN: (NUMBERS, NUMBERS, TEXTS), Syscall.CLOSE: (NUMBERS,), Syscall.READ: (NUMBERS, NUMBERS),
    Syscall.PREAD: (NUMBERS, NUMBERS, NUMBERS), Syscall.WRITE: (NUMBERS, st.just(1), st.just(b"x")),
    Syscall.PWRITE: (NUMBERS, st.just(1), NUMBERS, st.just(b"x")), Syscall.LSEEK: (NUMBERS, NUMBERS, NUMBERS),
    Syscall.FSYNC: (NUMBERS,), Syscall.FSTAT: (NUMBERS,), Syscall.UNLINK: (TEXTS,), Syscall.RENAME: (TEXTS, TEXTS),
    Syscall.GETDIR: (TEXTS,), Syscall.WHOAMI: (NUMBERS,), Syscall.GET_JOB_ATTR: (TEXTS,),
    Syscall.SET_JOB_ATTR: (TEXTS, TEXTS), Syscall.GET_FILE_INFO_NEW: (TEXTS,),
}  # fmt: skip
CALLS = st.sampled_from(sorted(SIGNATURES)).flatmap(lambda call: st.tuples(st.just(call), st.tuples(*SIGNATURES[call])))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(CALLS, max_size=12))
def test_whatever_is_asked_has_an_answer_or_is_the_askers_fault(
    remote: RemoteIO, calls: list[tuple[Syscall, tuple[Any, ...]]]
) -> None:
    assert {int(call) for call in SIGNATURES} == set(map(int, remote._act))
    opened(remote, "made", CREATE)
    for call, arguments in calls:
        with contextlib.suppress(PeerFault):
            assert isinstance(ask(remote, call, *arguments), tuple)
    remote.close()
    remote._written.clear()


@pytest.mark.parametrize("name", ["\udcff", "é"])
def test_half_a_character_names_no_attribute(remote: RemoteIO, name: str) -> None:
    assert ask(remote, Syscall.GET_JOB_ATTR, name) == (-1, EINVAL)
    assert ask(remote, Syscall.SET_JOB_ATTR, "1", name) == (-1, EINVAL)
    assert remote.changed == {}
