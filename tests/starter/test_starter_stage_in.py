"""Stage-in: at one account with the real wrapper, and against far sides that lie."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import trio

from cedar.filetransfer import StoreFailed
from pilot.calls import own_children
from pilot.farside import FarSide, open_call
from pilot.outcomes import Broken
from starter import places
from starter.sandbox import (
    Catalogue,
    Changed,
    Context,
    StageFailed,
    make_place,
    remove_place,
    stage_in,
)
from tests.jobwrapper.farsides import hostile_context, once, open_fds, tree, wrapper_context
from tests.starter.staging import NASTY, fetched, mode_of, staged


async def test_stage_in_keeps_modes_and_content(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    old = os.umask(0o077)
    try:
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            assert (mode_of(place.root), mode_of(place.sticky), mode_of(place.path)) == (0o711, 0o711, 0o700)
            await inward.file("tool", 0o755, 5, once(b"ab", b"", b"cde"))
            await inward.file("shared", 0o666, 0, once())
            await inward.file("secret", 0o600, 1, once(b"x"))
            await inward.file("readonly", 0o444, 1, once(b"x"))
            await inward.file("setuid", 0o4755, 1, once(b"x"))
            await inward.directory("dir", 0o755)
            await inward.file("dir/deep/file", 0o644, 1, once(b"y"))
            catalogue = await inward.finish()
    finally:
        os.umask(old)
    assert tree(place.path) == {
        "tool": "f755", "shared": "f644", "secret": "f600", "readonly": "f444", "setuid": "f755",
        "dir": "d755", "dir/deep": "d755", "dir/deep/file": "f644",
    }  # fmt: skip
    assert (place.path / "tool").read_bytes() == b"abcde"
    found = {entry.name: (entry.kind, entry.mode, entry.size) for entry in catalogue.entries}
    assert found["tool"] == ("file", 0o755, 5)
    assert found["dir"][:2] == ("dir", 0o755)
    assert len(found) == 6
    tool = next(entry for entry in catalogue.entries if entry.name == "tool")
    assert tool.mtime_ns == (place.path / "tool").stat().st_mtime_ns


async def test_stage_in_leaves_a_record_that_only_we_can_read(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {})
    record = place.root / places.RECORD
    assert mode_of(record) == 0o600
    content = json.loads(record.read_text())
    assert (content["id"], content["uid"], content["inode"]) == ("t#1", os.getuid(), place.path.stat().st_ino)
    remove_place(place)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_names_of_every_kind_go_in_and_out(tmp_path: Path) -> None:
    given = {name: os.fsencode(name) for name in NASTY}
    place, catalogue = await staged(tmp_path, given)
    assert {entry.name for entry in catalogue.entries} == set(NASTY)
    assert {os.fsdecode(path.name) for path in place.path.iterdir()} == set(NASTY)
    assert await fetched(place, Changed(Catalogue(()))) == given


@pytest.mark.parametrize("name", ["/x", "../x", "a/../x", "", ".", "..", "a\0b", "a" * 256])
async def test_names_that_lead_out_do_not_go_in(tmp_path: Path, name: str) -> None:
    place = make_place(tmp_path)
    with pytest.raises(StageFailed) as caught:
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            await inward.file(name, 0o644, 1, once(b"x"))
    assert caught.value.code == "name"
    remove_place(place)


@pytest.mark.parametrize("content", [b"ab", b"abcd"])
async def test_a_file_of_another_size_than_announced(tmp_path: Path, content: bytes) -> None:
    place = make_place(tmp_path)
    with pytest.raises(StageFailed) as caught:
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            await inward.file("x", 0o644, 3, once(content))
    assert caught.value.code == "size"
    remove_place(place)


async def test_an_input_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with pytest.raises(KeyError):  # noqa: PT012
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            await inward.directory("dir", 0o500)
            await inward.file("dir/file", 0o400, 1_000_000, once(bytes(1_000_000)))
            raise KeyError
    remove_place(place)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
    assert own_children() == frozenset()


async def test_a_cancelled_input_leaves_nothing(tmp_path: Path) -> None:
    before = open_fds()
    place = make_place(tmp_path)
    with trio.move_on_after(0.1):
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            await inward.file("file", 0o400, 1_000_000, once(bytes(1_000_000)))
            await trio.sleep_forever()
    remove_place(place)
    assert own_children() == frozenset()
    assert open_fds() == before


async def test_the_far_sides_disk_says_no(tmp_path: Path) -> None:
    """A name that is taken by a directory stands for every refusal: told once, the rest is drained."""
    refused = 0
    place = make_place(tmp_path)
    with pytest.raises(StageFailed) as caught:  # noqa: PT012
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
            await inward.directory("x", 0o755)
            for name in ("x", "y", "z"):
                try:
                    await inward.file(name, 0o644, 3_000_000, once(*[bytes(100_000)] * 30))
                except StoreFailed as failed:
                    refused += failed.subcode == errno.EISDIR
            await inward.finish()
    assert refused > 0
    assert (caught.value.code, caught.value.errno) == ("store", errno.EISDIR)
    assert "Is a directory" in caught.value.text
    remove_place(place)


async def test_a_place_is_never_used_twice(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {})
    with pytest.raises(StageFailed) as caught:
        async with stage_in(wrapper_context(), place, deadline_s=60):
            pass
    assert "File exists" in str(caught.value)
    assert mode_of(place.sticky) == 0o711


READY = """
hello()
w = receive()
top = os.path.join(w["parent"], w["name"])
def ready(path):
    found = os.lstat(path)
    send({"ready": {"dev": found.st_dev, "ino": found.st_ino, "uid": found.st_uid}})
"""


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("hello()", "closed"),
        ("hello(); receive(); send({})", "framing"),
        ("hello(); receive(); send({'ready': 7})", "framing"),
        ("hello(); receive(); send({'ready': {'dev': 'x', 'ino': 1}})", "framing"),
        ("hello(); receive(); send({'ready': {'dev': 1, 'ino': 10**30}})", "framing"),
        ("hello(); receive(); send({'ready': {'dev': 1, 'ino': 1}})", "place"),
        ("hello(); receive(); send({'failed': 'x'})", "framing"),
        ("hello(); receive(); send({'failed': {'step': 's\\n', 'text': 't' * 9999}})", "store"),
        ("hello(); receive(); line.sendall(b'\\xff' * 1000)", "framing"),
        ("hello(); receive(); line.sendall(struct.pack('>I', 200000) + b'[' * 200000)", "framing"),
        (READY + "os.symlink('/', top); ready('/')", "place"),
        (READY + "open(top, 'w'); ready(top)", "place"),
        (READY + "os.mkdir(top); os.mkdir(top + 'x'); ready(top)", "place"),
        (READY + "os.mkdir(top); ready('/')", "place"),
        (READY + "os.mkdir(top + 'x'); ready(top + 'x')", "place"),
    ],
)
async def test_a_far_side_that_lies_about_the_sandbox(tmp_path: Path, program: str, code: str) -> None:
    (tmp_path / "execute").mkdir()
    place = make_place(tmp_path / "execute")
    context = hostile_context(tmp_path / "far", program)
    with pytest.raises(StageFailed) as caught:
        async with stage_in(context, place, deadline_s=60):
            raise AssertionError("must not be entered")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert mode_of(place.sticky) == 0o711 or not place.sticky.exists()
    assert own_children() == frozenset()
    remove_place(place)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("", "closed"),
        ("send({'entries': 7})", "framing"),
        ("send({'entries': [[1, 2]]})", "framing"),
        ("send({'entries': [['x', 'file', 0, 0, 'now']]})", "framing"),
        ("send({'entries': [['x', 'socket', 0, 0, 0]]})", "framing"),
        ("send({'entries': [['../x', 'file', 0, 0, 0]]})", "name"),
        ("send({'entries': [['\\ud800x', 'file', 0, 0, 0]]})", "framing"),
        ("send({'entries': [['x', 'file', 0, 0, 0]] * 2})", "framing"),
        ("send({'entries': [['x', 'file', 0, 1 << 70, 0]]})", "framing"),
    ],
)
async def test_a_far_side_that_lies_about_the_catalogue(tmp_path: Path, answer: str, code: str) -> None:
    (tmp_path / "execute").mkdir()
    place = make_place(tmp_path / "execute")
    program = READY + f"os.mkdir(top); ready(top)\nwhile line.recv(65536): pass\n{answer}"
    with pytest.raises(StageFailed) as caught:
        async with stage_in(hostile_context(tmp_path / "far", program), place, deadline_s=60) as inward:
            await inward.finish()
    assert caught.value.code == code
    remove_place(place)


async def test_a_far_side_that_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it stands still it gets the time for its start that it needs."""

    async def patiently(context: Context, verb: str, *, deadline_s: float) -> FarSide:
        return await open_call(context, verb, deadline_s=60)

    monkeypatch.setattr("starter.stagein.open_call", patiently)
    monkeypatch.setattr("pilot.farside.END_GRACE_S", 0.1)
    monkeypatch.setattr("pilot.calls.KILLED_WITHIN_S", 30.0)
    place = make_place(tmp_path)
    context = hostile_context(tmp_path / "far", "hello(); receive(); os.kill(os.getpid(), 19)")
    with pytest.raises(StageFailed) as caught:
        async with stage_in(context, place, deadline_s=0.1):
            pass
    assert caught.value.code == "timeout"
    assert own_children() == frozenset()


async def test_a_wrapper_that_dies_is_broken_and_tried_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = f"open({str(mark)!r}, 'a').write('x'); os.kill(os.getpid(), 9)"
    with pytest.raises(StageFailed) as caught:
        async with stage_in(hostile_context(tmp_path / "far", program, retries=2), make_place(tmp_path), deadline_s=60):
            pass
    assert isinstance(caught.value.outcome, Broken)
    assert mark.read_text() == "xxx"
