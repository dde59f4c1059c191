"""Stage-out: at one account with the real wrapper, and against far sides that lie."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
import trio

from pilot.calls import own_children
from starter.places import Left
from starter.sandbox import (
    Changed,
    Limits,
    Listed,
    OutFile,
    StageFailed,
    make_place,
    remove_place,
    stage_in,
    stage_out,
)
from tests.jobwrapper.farsides import LIMITS, hostile_context, once, open_fds, wrapper_context
from tests.starter.staging import NASTY, collect, fetched, staged


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
    async with stage_out(wrapper_context(), place, Listed(names), limits=LIMITS, deadline_s=60) as outward:
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
    async with stage_out(wrapper_context(), place, Listed(("d",)), limits=LIMITS, deadline_s=60) as outward:
        told = dict(outward.manifest.left_out)
        assert told == {"d/pipe": "a named pipe", "d/socket": "a socket", "d/up": "a link to a directory"}
        assert outward.manifest.missing == ()
        assert await collect(outward) == {"d": None, "d/plain": b"x"}


async def test_a_link_to_a_directory_needs_its_slash(tmp_path: Path) -> None:
    """As stock: it would not say where the files are."""
    place, _ = await staged(tmp_path, {"d/plain": b"x"})
    (place.path / "link").symlink_to("d")
    async with stage_out(wrapper_context(), place, Listed(("link",)), limits=LIMITS, deadline_s=60) as outward:
        assert outward.manifest.missing == ("link",)
        assert "slash" in outward.manifest.reasons[0]
    assert await fetched(place, Listed(("link/",))) == {"plain": b"x"}


async def test_again_then_remove(tmp_path: Path) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 700_000, "g": b"G"})
    async with stage_out(wrapper_context(), place, Listed(("f", "g")), limits=LIMITS, deadline_s=60) as outward:
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
    async with stage_out(wrapper_context(), place, Listed(("f", "g")), limits=LIMITS, deadline_s=60) as outward:
        assert [entry.name async for entry in outward.entries()] == ["f", "g"]


@pytest.mark.parametrize("how", ["leave", "raise", "cancel"])
async def test_without_a_word_the_sandbox_is_kept(tmp_path: Path, how: str) -> None:
    place, _ = await staged(tmp_path, {"f": b"F" * 1_000_000})
    before = open_fds()
    with trio.CancelScope() as scope:
        try:
            async with stage_out(wrapper_context(), place, Listed(("f",)), limits=LIMITS, deadline_s=60) as outward:
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
    async with stage_out(wrapper_context(), place, Listed(()), limits=LIMITS, deadline_s=60) as outward:
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
        with trio.fail_after(60):
            async with stage_out(context, place, Listed(("x",)), limits=LIMITS, deadline_s=60) as outward:
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
    async with stage_out(wrapper_context(), place, Listed(("d",)), limits=LIMITS, deadline_s=60) as outward:
        assert len(outward.manifest.entries) == 65
        assert outward.manifest.reasons == ("too many directories in one another",)
        assert set((await collect(outward)).values()) == {None}


async def test_files_on_their_way_outlive_a_batch_systems_sigterm(tmp_path: Path) -> None:
    """Such a one sends it to every process of a pilot: what a job has made still goes home."""
    place = make_place(tmp_path)
    content = os.urandom(3 << 20)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        terminate_children()
        await inward.file("big", 0o644, len(content), once(content))
        await inward.finish()
    async with stage_out(wrapper_context(), place, Listed(("big",)), limits=LIMITS, deadline_s=60) as outward:
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
