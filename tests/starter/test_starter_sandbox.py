"""Places, stage-in and stage-out: at one account with the real wrapper, and against far sides that lie."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
import trio

from cedar.filetransfer import StoreFailed
from pilot.calls import own_children
from pilot.farside import FarSide, open_call
from pilot.outcomes import Broken
from starter import places
from starter.places import Left, Made, Place, Unsafe, check_made, close_window, open_window
from starter.sandbox import (
    Catalogue,
    Changed,
    Context,
    Limits,
    Listed,
    OutFile,
    Outward,
    StageFailed,
    Wanted,
    make_place,
    remove_place,
    stage_in,
    stage_out,
)
from tests.jobwrapper.farsides import LIMITS, hostile_context, once, open_fds, tree, wrapper_context

NASTY = ["new\nline", "tab\t", "ünï", os.fsdecode(b"\xff\xfe"), "-rf", "a" * 255, "blank ", "\\", '"', "*"]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- places ---------------------------------------------------------------------------------------------------------


def test_a_place_is_closed_until_the_window_opens(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o700, 0o700)
    assert not place.path.exists()
    open_window(place)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o1733)
    close_window(place)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o711)
    remove_place(place)
    assert list(tmp_path.iterdir()) == []
    remove_place(place)


def test_two_places_have_nothing_in_common(tmp_path: Path) -> None:
    one, two = make_place(tmp_path), make_place(tmp_path)
    assert one.root != two.root
    assert one.token != two.token


def test_a_place_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        place = make_place(tmp_path)
        open_window(place)
    finally:
        os.umask(old)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o1733)


def test_execute_may_be_reached_through_a_link_of_ours(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert make_place(tmp_path / "link").root.parent == tmp_path / "real"


def test_a_base_that_anybody_can_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open" / "execute").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(Unsafe, match="sticky"):
        make_place(tmp_path / "open" / "execute")
    assert list((tmp_path / "open" / "execute").iterdir()) == []
    (tmp_path / "open").chmod(0o1777)
    make_place(tmp_path / "open" / "execute")


@pytest.mark.needs_root
def test_a_base_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "execute").mkdir()
    os.chown(tmp_path / "execute", 12345, 12345)
    with pytest.raises(Unsafe, match="12345"):
        make_place(tmp_path / "execute")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = make_place(tmp_path)
    open_window(made)
    return made


def made_by(path: Path) -> Made:
    found = path.lstat()
    return Made(found.st_dev, found.st_ino)


def test_the_sandbox_is_what_was_made(place: Place) -> None:
    place.path.mkdir()
    check_made(place, made_by(place.path), os.getuid())


def test_another_uid_than_the_kernel_told(place: Place) -> None:
    place.path.mkdir()
    with pytest.raises(Unsafe, match="belongs to"):
        check_made(place, made_by(place.path), os.getuid() + 1)


def test_another_directory_than_was_made(place: Place, tmp_path: Path) -> None:
    place.path.mkdir()
    with pytest.raises(Unsafe, match="not the directory"):
        check_made(place, made_by(tmp_path), os.getuid())


def test_a_link_instead_of_the_sandbox(place: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unsafe, match="not a directory"):
        check_made(place, made_by(tmp_path / "elsewhere"), os.getuid())


def test_somebody_planted_a_second_entry(place: Place) -> None:
    place.path.mkdir()
    (place.sticky / "planted").mkdir()
    with pytest.raises(Unsafe, match="2 entries"):
        check_made(place, made_by(place.path), os.getuid())


def test_no_entry_at_all(place: Place) -> None:
    with pytest.raises(Unsafe, match="0 entries"):
        check_made(place, Made(1, 1), os.getuid())


def test_a_place_that_was_replaced_is_not_touched(place: Place, tmp_path: Path) -> None:
    place.root.rename(tmp_path / "moved")
    place.root.mkdir()
    (place.root / "precious").touch()
    with pytest.raises(Unsafe):
        open_window(place)
    with pytest.raises(Left):
        remove_place(place)
    assert (place.root / "precious").exists()


def test_a_place_behind_a_link_is_not_touched(place: Place, tmp_path: Path) -> None:
    place.root.rename(tmp_path / "moved")
    place.root.symlink_to(tmp_path / "moved")
    with pytest.raises(Left):
        remove_place(place)
    assert (tmp_path / "moved" / places.STICKY).exists()


def test_a_sandbox_with_something_in_it_is_left(place: Place) -> None:
    place.path.mkdir()
    (place.path / "output").touch()
    with pytest.raises(Left) as caught:
        remove_place(place)
    assert caught.value.path == place.path
    assert (place.path / "output").exists()


# -- stage-in -------------------------------------------------------------------------------------------------------


async def staged(tmp_path: Path, files: dict[str, bytes]) -> tuple[Place, Catalogue]:
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
        for name, content in files.items():
            await inward.file(name, 0o644, len(content), once(content))
        return place, await inward.finish()


async def test_stage_in_keeps_modes_and_content(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    old = os.umask(0o077)
    try:
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
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
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
            await inward.file(name, 0o644, 1, once(b"x"))
    assert caught.value.code == "name"
    remove_place(place)


@pytest.mark.parametrize("content", [b"ab", b"abcd"])
async def test_a_file_of_another_size_than_announced(tmp_path: Path, content: bytes) -> None:
    place = make_place(tmp_path)
    with pytest.raises(StageFailed) as caught:
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
            await inward.file("x", 0o644, 3, once(content))
    assert caught.value.code == "size"
    remove_place(place)


async def test_an_input_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with pytest.raises(KeyError):  # noqa: PT012
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
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
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
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
        async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
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
        async with stage_in(wrapper_context(), place, deadline_s=20):
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
        async with stage_in(context, place, deadline_s=20):
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
        async with stage_in(hostile_context(tmp_path / "far", program), place, deadline_s=20) as inward:
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
        async with stage_in(hostile_context(tmp_path / "far", program, retries=2), make_place(tmp_path), deadline_s=20):
            pass
    assert isinstance(caught.value.outcome, Broken)
    assert mark.read_text() == "xxx"


# -- stage-out ------------------------------------------------------------------------------------------------------


async def collect(outward: Outward) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    async for entry in outward.entries():
        found[entry.name] = None
        if isinstance(entry, OutFile):
            found[entry.name] = b"".join([chunk async for chunk in entry.chunks])
    return found


async def fetched(place: Place, wanted: Wanted, limits: Limits = LIMITS) -> dict[str, bytes | None]:
    async with stage_out(wrapper_context(), place, wanted, limits=limits, deadline_s=20) as outward:
        found = await collect(outward)
        assert [entry.name for entry in outward.manifest.entries] == list(found)
        return found


async def test_what_is_new_or_changed_in_the_top_directory_comes_back(tmp_path: Path) -> None:
    place, catalogue = await staged(tmp_path, {"same": b"1", "longer": b"1", "touched": b"1", "gone": b"1"})
    (place.path / "longer").write_bytes(b"12")
    os.utime(place.path / "touched", ns=(1, 1))
    (place.path / "gone").unlink()
    (place.path / "new").write_bytes(b"n")
    (place.path / "dir").mkdir()
    (place.path / "dir" / "inner").touch()
    (place.path / "link").symlink_to("new")
    os.mkfifo(place.path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{os.open(place.path, os.O_PATH)}/socket")
    assert await fetched(place, Changed(catalogue)) == {"longer": b"12", "new": b"n", "touched": b"1"}


@pytest.mark.parametrize(
    ("names", "found", "missing"),
    [
        (("f",), {"f": b"F"}, ()),
        (("d",), {"d": None, "d/e": None, "d/e/g": b"G", "d/h": b"H"}, ()),
        (("d/",), {"e": None, "e/g": b"G", "h": b"H"}, ()),
        (("d/e",), {"e": None, "e/g": b"G"}, ()),
        (("d/h",), {"h": b"H"}, ()),
        (("d/e/g", "f", "f"), {"g": b"G", "f": b"F"}, ()),
        (("link",), {"link": b"F"}, ()),
        (("f", "nix"), {"f": b"F"}, ("nix",)),
        (("f/",), {}, ("f/",)),
        (("../x", "/etc/passwd", "d/../../x", ""), {}, ("../x", "/etc/passwd", "d/../../x", "")),
        (("fifo",), {}, ("fifo",)),
        (("dangling",), {}, ("dangling",)),
        (("round",), {"round": None, "round/x": b"X"}, ()),
        ((), {}, ()),
    ],
)
async def test_what_is_listed_comes_back(tmp_path: Path, names, found, missing) -> None:
    place, _ = await staged(tmp_path, {"f": b"F", "d/e/g": b"G", "d/h": b"H", "round/x": b"X"})
    (place.path / "link").symlink_to("f")
    (place.path / "dangling").symlink_to("nowhere")
    (place.path / "round" / "again").symlink_to("..")
    os.mkfifo(place.path / "fifo")
    async with stage_out(wrapper_context(), place, Listed(names), limits=LIMITS, deadline_s=20) as outward:
        assert outward.manifest.missing == missing
        assert len(outward.manifest.reasons) == len(missing)
        assert await collect(outward) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("d/e/g", {"d": None, "d/e": None, "d/e/g": b"G"}),
        ("./d//e/g", {"d": None, "d/e": None, "d/e/g": b"G"}),
        ("d/e", {"d": None, "d/e": None, "d/e/g": b"G"}),
        # The slash says "the contents", and paths that are kept say where: stock puts them below it as well.
        ("d/e/", {"d": None, "d/e": None, "d/e/g": b"G"}),
        ("f", {"f": b"F"}),
    ],
)
async def test_paths_are_preserved_when_asked_for(tmp_path: Path, name: str, found: dict[str, bytes | None]) -> None:
    place, _ = await staged(tmp_path, {"f": b"F", "d/e/g": b"G", "d/h": b"H"})
    assert await fetched(place, Listed((name,), preserve=True)) == found
    assert await fetched(place, Listed((name, "d/h"), preserve=True)) == {**found, "d": None, "d/h": b"H"}


async def test_what_is_no_file_is_left_out_and_told(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"d/plain": b"x"})
    os.mkfifo(place.path / "d" / "pipe")
    (place.path / "d" / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(place.path / "d"):
        listening.bind("socket")
    async with stage_out(wrapper_context(), place, Listed(("d",)), limits=LIMITS, deadline_s=20) as outward:
        told = dict(outward.manifest.left_out)
        assert told == {"d/pipe": "a named pipe", "d/socket": "a socket", "d/up": "a link to a directory"}
        assert outward.manifest.missing == ()
        assert await collect(outward) == {"d": None, "d/plain": b"x"}


async def test_a_link_to_a_directory_needs_its_slash(tmp_path: Path) -> None:
    """As stock: it would not say where the files are."""
    place, _ = await staged(tmp_path, {"d/plain": b"x"})
    (place.path / "link").symlink_to("d")
    async with stage_out(wrapper_context(), place, Listed(("link",)), limits=LIMITS, deadline_s=20) as outward:
        assert outward.manifest.missing == ("link",)
        assert "slash" in outward.manifest.reasons[0]
    assert await fetched(place, Listed(("link/",))) == {"plain": b"x"}


async def test_again_then_remove(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 700_000, "g": b"G"})
    async with stage_out(wrapper_context(), place, Listed(("f", "g")), limits=LIMITS, deadline_s=20) as outward:
        async for entry in outward.entries():
            assert isinstance(entry, OutFile)
            assert len(await anext(entry.chunks)) > 0
            break
        await outward.again()
        assert len((await collect(outward))["f"] or b"") == 700_000
        await outward.remove()
    assert list(place.path.iterdir()) == []
    remove_place(place)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_chunks_that_nobody_reads_are_skipped(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 700_000, "g": b"G"})
    async with stage_out(wrapper_context(), place, Listed(("f", "g")), limits=LIMITS, deadline_s=20) as outward:
        assert [entry.name async for entry in outward.entries()] == ["f", "g"]


@pytest.mark.parametrize("how", ["leave", "raise", "cancel"])
async def test_without_a_word_the_sandbox_is_kept(tmp_path: Path, how: str) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 1_000_000})
    before = open_fds()
    with trio.CancelScope() as scope:
        try:
            async with stage_out(wrapper_context(), place, Listed(("f",)), limits=LIMITS, deadline_s=20) as outward:
                async for entry in outward.entries():
                    assert isinstance(entry, OutFile)
                    await anext(entry.chunks)
                    if how == "raise":
                        raise KeyError
                    if how == "cancel":
                        scope.cancel()
                    break
        except KeyError:
            pass
    assert (place.path / "f").stat().st_size == 1_000_000
    assert own_children() == frozenset()
    assert open_fds() == before


async def test_limits_hold_before_anything_is_read(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 100, "g": b"G"})
    for limits in (Limits(max_bytes=100, max_files=2), Limits(max_bytes=101, max_files=1)):
        with pytest.raises(StageFailed) as caught:
            await fetched(place, Listed(("f", "g")), limits)
        assert caught.value.code == "limit"
    assert len(await fetched(place, Listed(("f", "g")), Limits(max_bytes=101, max_files=2))) == 2


async def test_another_owner_of_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = await staged(tmp_path, {"f": b"F"})
    monkeypatch.setattr("starter.entries.owner_of", lambda place: 12345)
    with pytest.raises(StageFailed) as caught:
        await fetched(place, Listed(("f",)))
    assert caught.value.code == "account"


def spoil(top: Path) -> None:
    """What jobs leave behind to annoy."""
    deep = top
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    (deep / "file").touch()
    (top / "closed" / "inner").mkdir(parents=True)
    (top / "closed" / "inner" / "file").touch()
    (top / "closed" / "inner").chmod(0o000)
    (top / "closed").chmod(0o000)
    (top / "to-root").symlink_to("/")
    (top / "d" / "up").symlink_to("..")
    os.mkfifo(top / "fifo")
    (top / "x").mkdir(mode=0o555)
    for name in NASTY:
        (top / name).mkdir()
        (top / name / name).touch()


async def test_remove_copes_with_whatever_the_job_left(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    place, _ = await staged(tmp_path, {})
    spoil(place.path)
    (place.path / "out").symlink_to(tmp_path / "precious")
    async with stage_out(wrapper_context(), place, Listed(()), limits=LIMITS, deadline_s=20) as outward:
        await outward.remove()
    remove_place(place)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]  # noqa: ASYNC240
    assert (tmp_path / "precious" / "file").exists()


def tar_of(program: str, *, manifest: str = "[['x', 'file', 420, 3, 0]]") -> str:
    return f"""
import io, tarfile
hello(); receive()
send({{'entries': {manifest}}}); send({{'done': True}})
def entry(name='x', size=3, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name); info.size = size; info.type = kind
    return info.tobuf(tarfile.GNU_FORMAT) + b'abc'.ljust(512, b'\\0') * bool(size)
END = bytes(1024)
{program}
line.shutdown(socket.SHUT_WR); line.recv(1)
"""


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (tar_of("line.sendall(entry() + END)"), None),
        (tar_of("line.sendall(entry('y') + END)"), "tar"),
        (tar_of("line.sendall(entry(size=2) + END)"), "tar"),
        (tar_of("line.sendall(entry(size=0) + END)"), "tar"),
        (tar_of("line.sendall(entry(kind=tarfile.DIRTYPE, size=0) + END)"), "tar"),
        (tar_of("line.sendall(entry(kind=tarfile.SYMTYPE, size=0) + END)"), "tar"),
        (tar_of("line.sendall(entry() + entry() + END)"), "tar"),
        (tar_of("line.sendall(entry() + entry('y') + END)"), "tar"),
        (tar_of("line.sendall(END)"), "tar"),
        (tar_of("line.sendall(os.urandom(5000))"), "tar"),
        (tar_of("line.sendall(entry()[:700])"), "closed"),
        (tar_of("line.sendall(entry())"), "closed"),
        (tar_of("pass"), "closed"),
        (tar_of("", manifest="[['x', 'other', 420, 3, 0]]"), "framing"),
        (tar_of("", manifest="[['x', 'file', 420, -3, 0]]"), "framing"),
        (tar_of("", manifest="[['x', 'file', 420, 1 << 50, 0]]"), "limit"),
        (tar_of("", manifest="[[str(i), 'file', 420, 0, 0] for i in range(1001)]"), "limit"),
        (tar_of("", manifest="[['../x', 'file', 420, 3, 0]]"), "name"),
        (tar_of("", manifest="[['/x', 'file', 420, 3, 0]]"), "name"),
        ("hello(); receive()\nfor _ in range(1001): send({'missing': [['x', 'y']]})", "limit"),
        ("hello(); receive()\nfor _ in range(10**6): send({})", "framing"),
        ("hello(); receive(); send({'missing': [['x', 7]]})", "framing"),
        ("hello(); receive(); send({'failed': {'step': 'open', 'text': 'no'}})", "store"),
    ],
)
async def test_a_far_side_that_lies_about_the_output(tmp_path: Path, program: str, code: str | None) -> None:
    (tmp_path / "execute").mkdir()
    place, _ = await staged(tmp_path / "execute", {})
    context = hostile_context(tmp_path / "far", program)
    failed = None
    try:
        with trio.fail_after(20):
            async with stage_out(context, place, Listed(("x",)), limits=LIMITS, deadline_s=5) as outward:
                assert await collect(outward) == {"x": b"abc"}
    except StageFailed as fault:
        failed = fault.code
    assert failed == code
    assert own_children() == frozenset()


async def test_a_far_side_that_removes_nothing(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"f": b""})
    program = tar_of("line.sendall(entry() + END); receive(); send({'left': 1, 'named': [['f', 'because']]})")
    with pytest.raises(StageFailed) as caught:
        async with stage_out(
            hostile_context(tmp_path / "far", program), place, Listed(()), limits=LIMITS, deadline_s=5
        ) as outward:
            await outward.remove()
    assert caught.value.code == "left"
    with pytest.raises(Left):
        remove_place(place)


async def test_a_tree_too_deep_to_be_meant_is_said_to_be_missing(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"d/" * 80 + "f": b"F"})
    async with stage_out(wrapper_context(), place, Listed(("d",)), limits=LIMITS, deadline_s=20) as outward:
        assert len(outward.manifest.entries) == 65
        assert outward.manifest.reasons == ("too many directories in one another",)
        assert set((await collect(outward)).values()) == {None}


async def test_files_on_their_way_outlive_a_batch_systems_sigterm(place: Place) -> None:
    """Such a one sends it to every process of a pilot: what a job has made still goes home."""
    content = os.urandom(3 << 20)
    async with stage_in(wrapper_context(), place, deadline_s=20) as inward:
        terminate_children()
        await inward.file("big", 0o644, len(content), once(content))
        await inward.finish()
    async with stage_out(wrapper_context(), place, Listed(("big",)), limits=LIMITS, deadline_s=20) as outward:
        terminate_children()
        got = [
            b"".join([bytes(chunk) async for chunk in entry.chunks])
            async for entry in outward.entries()
            if isinstance(entry, OutFile)
        ]
        await outward.remove()
    assert got == [content]
    assert not place.path.exists() or list(place.path.iterdir()) == []


def terminate_children() -> None:
    children = own_children()
    assert children
    for pid in children:
        os.kill(pid, signal.SIGTERM)
