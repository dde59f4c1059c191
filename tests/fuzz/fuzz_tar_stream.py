"""The tar stream that comes back from a job's sandbox: whatever the bytes, a TarFault or harmless entries, in bounded
memory, however the stream is cut."""

from __future__ import annotations

from starter.tarstream import BLOCK, END, Data, Entry, Limits, TarFault, TarReader, header, padding

LIMITS = Limits(max_bytes=100_000, max_files=50, names_bytes=20_000)

SEEDS = (
    END,
    header(b"out", mode=0o644, size=3) + b"abc" + padding(3) + END,
    header(b"dir", mode=0o755, directory=True) + header(b"dir/x", mode=0o600) + END,
    header(b"n" * 200, mode=0o644, size=1) + b"x" + padding(1) + END,
    header(b"big", mode=0o644, size=1 << 40),
)


def once(data: bytes) -> None:
    """Read `data` as a stream that is cut at places of its own choice; check what comes out."""
    step = data[0] + 1 if data else 1
    for stream in (data, with_checksums(data)):
        whole, cut = read([stream]), read([stream[at : at + step] for at in range(0, len(stream), step)])
        assert whole == cut, "what is read depends on how the stream is cut"


def with_checksums(data: bytes) -> bytes:
    """The same with a checksum put where a header would have one: few changed bytes would get any further."""
    made = bytearray(data)
    for at in range(0, len(made) - BLOCK + 1, BLOCK):
        block = made[at : at + BLOCK]
        if any(block):
            made[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    return bytes(made)


def read(pieces: list[bytes]) -> list[object]:
    """The entries with their content, and the fault's code if there is one."""
    reader, found = TarReader(LIMITS), []  # type: ignore[var-annotated]
    kinds: dict[bytes, bool] = {}
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                if isinstance(event, Entry):
                    check(event, kinds)
                    found.append([event.name, event.directory, event.mode, event.size, b""])
                elif isinstance(event, Data):
                    found[-1][4] += event.content
                    assert len(found[-1][4]) <= found[-1][3], "more content than announced"
        reader.finish()
    except TarFault as fault:
        found.append(fault.code)
    return found


def check(entry: Entry, kinds: dict[bytes, bool]) -> None:
    """An entry must be harmless by itself and beside those before it."""
    parts = entry.name.split(b"/")
    assert not any(part in (b"", b".", b"..") or b"\0" in part or len(part) > 255 for part in parts), entry
    assert 0 <= entry.mode <= 0o777, entry
    assert entry.name not in kinds, "a name twice"
    for depth in range(1, len(parts)):
        assert kinds.get(b"/".join(parts[:depth])) is not False, "a file that is also a directory"
    kinds[entry.name] = entry.directory
    assert len(kinds) <= LIMITS.max_files
    assert sum(map(len, kinds)) <= LIMITS.names_bytes
    assert entry.size <= LIMITS.max_bytes
