"""Tar streams: what we make is a tar archive, and what is not one of ours is refused in bounded memory."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobwrapper import stage_out
from starter.tarstream import (
    BLOCK,
    END,
    Data,
    End,
    Entry,
    Limits,
    TarFault,
    TarReader,
    check_name,
    header,
    padding,
)

LIMITS = Limits(max_bytes=1_000_000, max_files=1000)
Found = list[tuple[bytes, bool, int, bytes]]

components = st.binary(min_size=1, max_size=255).filter(lambda b: b not in (b".", b"..") and not {0, 47} & set(b))
names = st.lists(components, min_size=1, max_size=6).map(b"/".join)
modes = st.integers(0, 0o777)
entries = st.lists(
    st.tuples(names, st.booleans(), modes, st.binary(max_size=1500)),
    max_size=6,
    unique_by=lambda entry: entry[0],
)


def archive(given: Iterable[tuple[bytes, bool, int, bytes]]) -> bytes:
    made = b""
    for name, directory, mode, content in given:
        content = b"" if directory else content
        made += header(name, mode=mode, size=len(content), directory=directory) + content + padding(len(content))
    return made + END


def read(pieces: Iterable[bytes], limits: Limits = LIMITS) -> Found:
    reader = TarReader(limits)
    found: Found = []
    for piece in pieces:
        for event in reader.feed(piece):
            match event:
                case Entry(name, directory, mode, _size):
                    found.append((name, directory, mode, b""))
                case Data(content):
                    name, directory, mode, before = found.pop()
                    found.append((name, directory, mode, before + content))
                case End():
                    pass
    reader.finish()
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(marks)]


def outcome(pieces: Iterable[bytes], limits: Limits = LIMITS) -> Found | str:
    try:
        return read(pieces, limits)
    except TarFault as fault:
        return fault.code


def consistent(given: list[tuple[bytes, bool, int, bytes]]) -> bool:
    """No file is also a directory of another entry."""
    files = {name for name, directory, _mode, _content in given if not directory}
    return not any(name.startswith(file + b"/") for name, *_ in given for file in files)


@given(entries.filter(consistent), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_any_cutting_gives_what_was_put_in(given, places: list[int]) -> None:
    expected = [(n, d, m, b"" if d else c) for n, d, m, c in given]
    assert read(cut(archive(given), places)) == expected


@given(entries)
def test_tarfile_reads_what_we_make(given) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(given)), errors="surrogateescape", encoding="utf-8") as tar:
        found = [(os.fsencode(m.name), m.isdir(), m.mode, m.size) for m in tar]
    assert found == [(n, d, m, 0 if d else len(c)) for n, d, m, c in given]


@given(entries.filter(consistent))
def test_we_read_what_tarfile_makes(given) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, directory, mode, content in given:
            info = tarfile.TarInfo(os.fsdecode(name))
            info.mode, info.type = mode, tarfile.DIRTYPE if directory else tarfile.REGTYPE
            info.size = 0 if directory else len(content)
            tar.addfile(info, io.BytesIO(content))
    assert read([made.getvalue()]) == [(n, d, m, b"" if d else c) for n, d, m, c in given]


@given(names, modes, st.integers(0, 1 << 40), st.booleans())
def test_both_sides_make_the_same_header(name: bytes, mode: int, size: int, directory: bool) -> None:
    size = 0 if directory else size
    far = stage_out.header(name, mode, size, b"5" if directory else b"0")
    assert header(name, mode=mode, size=size, directory=directory) == far


@given(entries, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_refused_or_harmless(given, damage) -> None:
    """Whatever comes out has a name that leads nowhere, a size within the limits, and one reading."""
    data = bytearray(archive(given))
    for place, value in damage:
        data[place % len(data)] = value
    whole = outcome([bytes(data)])
    assert whole == outcome([bytes(data[i : i + 100]) for i in range(0, len(data), 100)])
    for name, _directory, mode, _content in whole if isinstance(whole, list) else []:
        assert check_name(name) == name
        assert mode == mode & 0o777


@given(st.binary(max_size=3000))
def test_garbage_is_a_fault(data: bytes) -> None:
    result = outcome([data])
    assert isinstance(result, str) or not data[:BLOCK].strip(b"\0")


@given(entries.filter(consistent), st.integers(0, 1 << 20))
def test_a_shorter_stream_is_truncated(given, place: int) -> None:
    data = archive(given)
    assert outcome([data[: place % (len(data) - BLOCK)]]) == "truncated"


def made_by_tarfile(*, kind: bytes = tarfile.REGTYPE, format: int = tarfile.GNU_FORMAT, **fields) -> bytes:
    info = tarfile.TarInfo("x")
    info.type = kind
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(format, "utf-8", "surrogateescape") + END


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (made_by_tarfile(kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "kind"),
        (made_by_tarfile(kind=tarfile.LNKTYPE, linkname="x"), "kind"),
        (made_by_tarfile(kind=tarfile.CHRTYPE), "kind"),
        (made_by_tarfile(kind=tarfile.BLKTYPE), "kind"),
        (made_by_tarfile(kind=tarfile.FIFOTYPE), "kind"),
        (made_by_tarfile(kind=tarfile.CONTTYPE), "kind"),
        (made_by_tarfile(kind=tarfile.GNUTYPE_SPARSE), "kind"),
        (made_by_tarfile(kind=b"K", size=10), "kind"),
        (made_by_tarfile(kind=b"x", size=1 << 40), "kind"),
        (made_by_tarfile(kind=b"g", size=10), "kind"),
        (made_by_tarfile(format=tarfile.PAX_FORMAT, name="é" * 200), "kind"),
        (made_by_tarfile(format=tarfile.USTAR_FORMAT, name="a" * 90 + "/" + "b" * 90), "header"),
        (made_by_tarfile(name="/etc/passwd"), "name"),
        (made_by_tarfile(name="../x"), "name"),
        (made_by_tarfile(name="a/../x"), "name"),
        (made_by_tarfile(name="a/.."), "name"),
        (made_by_tarfile(name="./x"), "name"),
        (made_by_tarfile(name="a//x"), "name"),
        (made_by_tarfile(name="."), "name"),
        (made_by_tarfile(name=""), "name"),
        (made_by_tarfile(kind=tarfile.DIRTYPE, name="/"), "name"),
        (made_by_tarfile(kind=b"L", size=5000), "name"),
        (made_by_tarfile(kind=b"L", size=1 << 50), "name"),
        (made_by_tarfile(kind=b"L", size=0), "name"),
        (made_by_tarfile(kind=tarfile.DIRTYPE, size=5), "header"),
        (made_by_tarfile(size=1_000_001), "limit"),
        (made_by_tarfile(size=1 << 62), "limit"),
        (made_by_tarfile(size=-1), "header"),
        (header(b"a" * 256, mode=0) + END, "name"),
        (header(b"/".join([b"a" * 200] * 21), mode=0) + END, "name"),
        (header(b"x", mode=0) * 2 + END, "duplicate"),
        (header(b"x", mode=0) + header(b"x", mode=0, directory=True) + END, "duplicate"),
        (header(b"x", mode=0) + header(b"x/y", mode=0) + END, "duplicate"),
        (header(b"x/y/z", mode=0) + header(b"x/y", mode=0) + END, "duplicate"),
        (header(b"x/y/z", mode=0) + header(b"x", mode=0) + END, "duplicate"),
        (b"\1" * BLOCK, "header"),
    ],
)
def test_what_is_refused(data: bytes, code: str) -> None:
    assert outcome([data]) == code


def test_a_directory_may_come_behind_what_lies_in_it() -> None:
    assert outcome([header(b"x/y", mode=0) + header(b"x", mode=0, directory=True) + END]) != "duplicate"


def test_the_directories_above_are_counted_with_the_names() -> None:
    deep = header(b"/".join([b"d"] * 200), mode=0) + END
    assert outcome([deep], Limits(max_bytes=0, max_files=9, names_bytes=10_000)) == "limit"
    assert outcome([deep], Limits(max_bytes=0, max_files=9, names_bytes=100_000)) != "limit"


def test_two_long_names_in_a_row() -> None:
    long_name = header(b"a" * 150, mode=0)[: 2 * BLOCK]
    assert outcome([long_name + long_name]) == "name"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(max_bytes=100, max_files=2), None),
        (Limits(max_bytes=99, max_files=2), "limit"),
        (Limits(max_bytes=100, max_files=1), "limit"),
        (Limits(max_bytes=100, max_files=2, names_bytes=1), "limit"),
    ],
)
def test_limits(limits: Limits, code: str | None) -> None:
    data = archive([(b"a", False, 0, b"x" * 50), (b"b", False, 0, b"x" * 50)])
    result = outcome([data], limits)
    assert result == code if code else isinstance(result, list)


def test_large_content_is_passed_on_as_it_came() -> None:
    reader = TarReader(Limits(max_bytes=1 << 40, max_files=1))
    assert len(list(reader.feed(header(b"big", mode=0, size=1 << 35)))) == 1
    piece = bytes(1 << 16)
    (event,) = reader.feed(piece)
    assert isinstance(event, Data)
    assert event.content is piece


def test_content_may_be_read_past_the_reader() -> None:
    """What was fed behind the header is taken first; the rest is told; the stream goes on in step."""
    reader = TarReader(LIMITS)
    events = reader.feed(header(b"big", mode=0, size=1000) + b"x" * 300)
    assert isinstance(next(events), Entry)
    events.close()
    room = memoryview(bytearray(700))
    assert reader.take(room) == 300
    reader.passed(400)
    (data, entry, end) = reader.feed(b"y" * 300 + padding(1000) + header(b"next", mode=0) + END)
    assert (data, entry, end) == (Data(b"y" * 300), Entry(b"next", False, 0, 0), End())
    assert bytes(room[:300]) == b"x" * 300


def test_memory_does_not_grow_with_the_stream() -> None:
    reader = TarReader(Limits(max_bytes=1 << 40, max_files=10))
    list(reader.feed(header(b"big", mode=0, size=1 << 30)))
    tracemalloc.start()
    for _ in range(200):
        for _event in reader.feed(bytes(100_003)):
            pass
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
