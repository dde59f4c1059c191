"""Whatever comes back of a sandbox, the pilot's memory stays bounded, nothing is stored, and words stay words."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cedar.classads import from_wire, get_str, to_wire
from cedar.filetransfer import Directory, File, TransferLimits, receive_files, send_files
from starter.sandbox import (
    Limits,
    Listed,
    Manifest,
    OutDirectory,
    OutFile,
    Outward,
    StageFailed,
    make_place,
    stage_in,
    stage_out,
)
from starter.tarstream import BLOCK, TarFault, TarReader, header
from starter.transfer import left_out, missing_output
from starter.updates import error_event, note_event
from starter.verdict import Hold
from tests.cedar.transferpeer import streams
from tests.jobwrapper.farsides import LIMITS, hostile_context, once, wrapper_context

MB = 1 << 20


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    """What this process allocates meanwhile; a starter's whole heap is smaller than any of these bombs."""
    tracemalloc.start()
    try:
        yield
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes, f"{peak / MB:.1f} MB at the peak"


# -- bombs ----------------------------------------------------------------------------------------------------------

ENDLESS = {
    "entries": "n = 0\nwhile True:\n  n += 500\n"
    "  send({'entries': [['%0200d' % (n + i), 'file', 420, 0, 0] for i in range(500)]})",
    "missing": "while True: send({'missing': [['x' * 4000, 'y' * 4000]] * 20})",
    "left out": "while True: send({'left_out': [['x' * 4000, 'y' * 4000]] * 20})",
    "one frame": "line.sendall(struct.pack('>I', 1 << 31)); exec('while True: line.sendall(bytes(65536))')",
    "nesting": "body = b'[' * 200000; line.sendall(struct.pack('>I', len(body)) + body)",
    "long names": "send({'entries': [['x', 'file', 420, 3, 0]]}); send({'done': True})\n"
    "h = tarfile.TarInfo('n' * 4000).tobuf(tarfile.GNU_FORMAT)[:4608]\nwhile True: line.sendall(h)",
    "a long name without end": "send({'entries': [['x', 'file', 420, 3, 0]]}); send({'done': True})\n"
    "i = tarfile.TarInfo('././@LongLink'); i.type = b'L'; i.size = 1 << 40\n"
    "line.sendall(i.tobuf(tarfile.GNU_FORMAT))\nwhile True: line.sendall(b'n' * 65536)",
    "a file without end": "send({'entries': [['x', 'file', 420, 1 << 20, 0]]}); send({'done': True})\n"
    "i = tarfile.TarInfo('x'); i.size = 1 << 20\nline.sendall(i.tobuf(tarfile.GNU_FORMAT))\n"
    "while True: line.sendall(b'z' * 65536)",
}


@pytest.mark.parametrize("bomb", ENDLESS)
async def test_a_bomb_is_given_up_in_bounded_memory(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "execute").mkdir()
    place = make_place(tmp_path / "execute")
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.finish()
    context = hostile_context(tmp_path / "far", f"import tarfile\nhello(); receive()\n{ENDLESS[bomb]}")
    limits = Limits(max_bytes=10 * MB, max_files=100_000, names_bytes=2 * MB)
    with peak_below(24 * MB), trio.fail_after(30), pytest.raises(StageFailed) as caught:
        async with stage_out(context, place, Listed(("x",)), limits=limits, deadline_s=60) as outward:
            await drained(outward)
    assert caught.value.code in ("limit", "framing", "tar")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
    assert list(place.path.iterdir()) == []


async def drained(outward: Outward) -> int:
    total = 0
    async for entry in outward.entries():
        if isinstance(entry, OutFile):
            async for chunk in entry.chunks:
                total += len(chunk)
    return total


@pytest.mark.parametrize(
    "kind", [bytes([number]) for number in range(256) if bytes([number]) not in (b"0", b"\0", b"5")]
)
def test_every_other_kind_of_entry_is_refused(kind: bytes) -> None:
    """Links of both kinds, devices, fifos, sparse files, extensions of every dialect, and what nobody has defined."""
    block = bytearray(header(b"x", mode=0o644))
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    with pytest.raises(TarFault) as refused:
        list(TarReader(LIMITS_SMALL).feed(bytes(block) + bytes(BLOCK)))
    assert refused.value.code == ("name" if kind == b"L" else "kind")


LIMITS_SMALL = Limits(max_bytes=1000, max_files=10)


async def test_a_sparse_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.finish()
    os.truncate(os.open(place.path / "bomb", os.O_CREAT | os.O_WRONLY), 1 << 40)
    with trio.fail_after(60), pytest.raises(StageFailed, match="1099511627776 bytes, allowed are 10000000"):
        async with stage_out(wrapper_context(), place, Listed(("bomb",)), limits=LIMITS, deadline_s=60):
            pass


# -- names ----------------------------------------------------------------------------------------------------------

FORGERIES = [
    "x\n11/27 12:00:00 job 9.0 exited",
    '"; HoldReasonCode = 0; y = "',
    "\x1b[2Jx",
    "a\\",
    "\udcff\udcfe",
    "x" * 5000,
]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_name_forges_no_line_and_no_attribute(name: str) -> None:
    manifest = Manifest((), (name,), ("No such file or directory",), ((name, "a named pipe"),))
    ack = missing_output(manifest, "node")
    assert ack is not None
    for event in (
        error_event(Hold(13, 2, ack.reason), "node", "now"),
        note_event(left_out(manifest, "node"), "node", "now"),
    ):
        wire = to_wire(event)
        assert not any("\n" in line for line in wire)
        back = from_wire(wire)
        text = get_str(back, "ErrorMsg")
        assert text.isprintable() or "\udcff" in text
        assert len(text) <= 1024
        assert set(back) == set(event)


# -- in one piece ---------------------------------------------------------------------------------------------------


async def zeros(size: int) -> AsyncIterator[bytes]:
    piece = bytes(MB)
    for _ in range(size // MB):
        yield piece


class Hashes:
    """A submit side that keeps digests."""

    def __init__(self) -> None:
        self.found: dict[str, str | None] = {}

    async def directory(self, name: str, mode: int) -> None:
        self.found[name] = None

    async def file(self, name: str, mode: int, size: int, chunks: AsyncIterator[bytes]) -> None:
        digest = hashlib.sha256()
        async for chunk in chunks:
            digest.update(chunk)
        self.found[name] = digest.hexdigest()

    async def url(self, name: str, url: str) -> None:
        raise AssertionError

    async def finish(self) -> dict[str, int | str]:
        return {}

    async def proxy(self, name: str, exchange: object) -> None:
        raise AssertionError


async def out(outward: Outward) -> dict[str, str | None]:
    """Through a CEDAR stream, as to a shadow."""
    sink = Hashes()

    async def items() -> AsyncIterator[File | Directory]:
        async for entry in outward.entries():
            if isinstance(entry, OutDirectory):
                yield Directory(entry.name, entry.mode)
            else:
                yield File(entry.name, entry.mode, entry.size, entry.chunks)

    async with streams(600) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: receive_files(far, sink, limits=TransferLimits()))
        own, peer = await send_files(near, items(), final=True, sandbox_bytes=0)
    assert (own.ok, peer.ok) == (True, True)
    return sink.found


async def in_and_out(tmp_path: Path, given: dict[str, bytes]) -> None:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        for name, content in given.items():
            await inward.file(name, 0o644, len(content), once(content))
        await inward.finish()
    tops = tuple(sorted({name.split("/", 1)[0] for name in given}))
    limits = Limits(max_bytes=1 << 40, max_files=100_000)
    async with stage_out(wrapper_context(), place, Listed(tops), limits=limits, deadline_s=60) as outward:
        found = await out(outward)
    files = {name: digest for name, digest in found.items() if digest is not None}
    assert files == {name: hashlib.sha256(content).hexdigest() for name, content in given.items()}


async def test_files_of_every_size_around_a_piece_come_back_whole(tmp_path: Path) -> None:
    piece = 256 * 1024
    sizes = [0, 1, 511, 512, 513, *(n * piece + more for n in (1, 2, 4, 5) for more in (-513, -1, 0, 1, 700))]
    await in_and_out(tmp_path, {f"dir/{number}": os.urandom(size) for number, size in enumerate(sizes)})


@pytest.mark.slow
async def test_ten_thousand_small_files_come_back_whole(tmp_path: Path) -> None:
    await in_and_out(tmp_path, {f"d{n % 97}/e{n % 7}/{n}": str(n).encode() * (n % 50) for n in range(10_000)})


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_gigabytes_go_out_in_constant_memory(tmp_path: Path) -> None:
    """A sparse file; what is read is 10 GB of zeros."""
    size = 10 << 30
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.finish()
    fd = os.open(place.path / "big", os.O_CREAT | os.O_WRONLY)
    os.truncate(fd, size)
    os.pwrite(fd, b"end", size - 3)
    os.close(fd)
    wanted = hashlib.sha256()
    async for piece in zeros(size - MB):
        wanted.update(piece)
    wanted.update(bytes(MB - 3) + b"end")
    limits = Limits(max_bytes=1 << 40, max_files=10)
    with peak_below(16 * MB):
        async with stage_out(wrapper_context(), place, Listed(("big",)), limits=limits, deadline_s=60) as outward:
            assert await out(outward) == {"big": wanted.hexdigest()}
            await outward.remove()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_gigabytes_come_in_in_constant_memory(tmp_path: Path) -> None:
    """The far side is one that counts, so that the test's disk need not hold them."""
    program = """
hello(); w = receive(); top = os.path.join(w["parent"], w["name"]); os.mkdir(top); found = os.lstat(top)
send({"ready": {"dev": found.st_dev, "ino": found.st_ino, "uid": found.st_uid}})
count = 0
while piece := line.recv(1 << 20): count += len(piece)
open(os.path.join(top, "count"), "w").write(str(count)); send({"done": True})
"""
    (tmp_path / "execute").mkdir()
    place = make_place(tmp_path / "execute")
    size = 10 << 30
    with peak_below(16 * MB):
        async with stage_in(hostile_context(tmp_path / "far", program), place, deadline_s=60) as inward:
            await inward.file("big", 0o644, size, zeros(size))
            await inward.finish()
    assert (place.path / "count").read_text() == str(size + 3 * BLOCK)
