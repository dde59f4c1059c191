"""How fast files reach a sandbox and come back: one file of 1 GB, and 10,000 small ones.

A process at the submit side sends or takes them over an encrypted CEDAR stream on loopback. Ours: a starter's part at
the pilot's account, and through sudo and glexec the far side at the user's. The reference takes the same stream, with
the same code of ``cedar``, and writes plain files at the pilot's own account. All files lie in memory (/dev/shm).
Clocks run while files move: the call of the switch is open by then (``turnaround`` and ``switch`` measure that).
Other work of the machine waits meanwhile, where the kernel lets it: three processes of ours and two of the reference
would suffer differently from it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import pilotside
from bench.families import answer, speaking
from bench.figures import Figure
from demo.site import Site

MEMORY = Path("/dev/shm")
RUNS = 5
# (name, files, bytes of each)
LOADS = (("1gb", 1, 1 << 30), ("10k", 10_000, 1024))
GOALS = {"1gb": ">= 0.8", "10k": ">= 0.6"}

# Both sides' way of naming the files: a hundred in a directory, so that directories move, too.
COMMON = """
import json, os, sys, time
import trio
from cedar.filetransfer import Directory, File, receive_files, send_files
from cedar.stream import CedarStream
KEY = bytes(range(32))
PIECE = bytes(256 * 1024)
def names(files):
    return ["dir%d/file%d" % (n // 100, n) for n in range(files)]
async def content(size):
    while size:
        piece = PIECE[:size] if size < len(PIECE) else PIECE
        size -= len(piece)
        yield piece
async def line():
    return (await trio.to_thread.run_sync(sys.stdin.buffer.readline)).decode()
"""

# The submit side: sends when asked for input, takes and drops what comes otherwise. Prints its port first.
SUBMIT = (
    COMMON
    + """
class Nowhere:
    async def finish(self):
        return {}
    async def directory(self, name, mode):
        pass
    async def file(self, name, mode, size, chunks):
        async for _ in chunks:
            pass
async def items(files, size):
    made = set()
    for name in names(files):
        above = os.path.dirname(name)
        if above not in made:
            made.add(above)
            yield Directory(above, 0o755)
        yield File(name, 0o644, size, content(size))
async def serve(transport):
    stream = CedarStream(transport)
    stream.use_key(KEY)
    asked = (await stream.get())
    what, files, size = asked.string(), asked.int(), asked.int()
    if what == "in":
        await send_files(stream, items(files, size), final=False, sandbox_bytes=files * size)
    else:
        await receive_files(stream, Nowhere())
    await stream.aclose()
async def main():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        await line()
        nursery.cancel_scope.cancel()
trio.run(main)
"""
)

# The execute side, either way. Asked for input and then output of a load, it prints both times in seconds.
EXECUTE = (
    COMMON
    + """
async def connected(port, what, files, size):
    stream = CedarStream(await trio.open_tcp_stream("127.0.0.1", port))
    stream.use_key(KEY)
    await stream.put(what, files, size)
    return stream
def good(acks):
    if not all(ack.ok for ack in acks):
        raise SystemExit(repr(acks))
async def main(act):
    while True:
        asked = await line()
        if not asked:
            return
        port, files, size = json.loads(asked)
        print(json.dumps(await act(port, files, size)), flush=True)
"""
)

# One uid: what comes is written to files in argv[1], what goes is read from them.
PLAIN = (
    EXECUTE
    + """
import shutil
class Plain:
    async def finish(self):
        return {}
    def __init__(self, top):
        self.top = top
    async def directory(self, name, mode):
        os.mkdir(os.path.join(self.top, name), mode)
    async def file(self, name, mode, size, chunks):
        fd = os.open(os.path.join(self.top, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view):]
        os.close(fd)
async def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        while piece := os.read(fd, 256 * 1024):
            yield piece
    finally:
        os.close(fd)
async def stored(top):
    for here, inner, files in os.walk(top):
        below = os.path.relpath(here, top)
        for name in inner:
            yield Directory(os.path.normpath(os.path.join(below, name)), 0o755)
        for name in files:
            path = os.path.join(here, name)
            found = os.stat(path)
            name = os.path.normpath(os.path.join(below, name))
            yield File(name, found.st_mode & 0o777, found.st_size, read(path))
async def act(port, files, size):
    top = os.path.join(sys.argv[1], "plain")
    os.mkdir(top)
    begun_s = time.perf_counter()
    stream = await connected(port, "in", files, size)
    good(await receive_files(stream, Plain(top)))
    in_s = time.perf_counter() - begun_s
    await stream.aclose()
    begun_s = time.perf_counter()
    stream = await connected(port, "out", files, size)
    good(await send_files(stream, stored(top), final=True, sandbox_bytes=files * size))
    out_s = time.perf_counter() - begun_s
    await stream.aclose()
    shutil.rmtree(top)
    return [in_s, out_s]
trio.run(main, act)
"""
)

# Ours, at the pilot's account: argv is execute directory, glexec's front, credential, wrapper's directory.
OURS = (
    EXECUTE
    + """
from pathlib import Path
from attrs import frozen
from pilot.farside import open_call
from pilot.switch import GlexecSwitch
from starter.sandbox import Context, Limits, Listed, OutDirectory, make_place, remove_place, stage_in, stage_out
class Sandbox:
    def __init__(self, inward):
        self.directory, self.file = inward.directory, inward.file
    async def finish(self):
        return {}
@frozen
class Settings:
    sailplane_wrapper_dir: str
    glexec_retries: int = 0
    glexec_retry_delay: float = 0.0
    sailplane_wrapper_python: str = "/usr/bin/python3"
execute, front, credential, wrapper = map(Path, sys.argv[1:])
async def items(outward):
    async for entry in outward.entries():
        if isinstance(entry, OutDirectory):
            yield Directory(entry.name, entry.mode)
        else:
            yield File(entry.name, entry.mode, entry.size, entry.chunks)
async def act(port, files, size):
    place = make_place(execute)
    context = Context(switch=GlexecSwitch(front, None), settings=Settings(str(wrapper)), audit_id="bench#staging",
                      credential=credential, place=place.root)
    async with stage_in(context, place, deadline_s=60) as inward:
        begun_s = time.perf_counter()
        stream = await connected(port, "in", files, size)
        good(await receive_files(stream, Sandbox(inward)))
        await inward.finish()
        in_s = time.perf_counter() - begun_s
    await stream.aclose()
    far = await open_call(context, "stage-out", deadline_s=60)
    limits = Limits(max_bytes=1 << 40, max_files=1 << 20)
    wanted = Listed(tuple(sorted({os.path.dirname(name) for name in names(files)})))
    begun_s = time.perf_counter()
    async with stage_out(context, place, wanted, limits=limits, deadline_s=60, far=far) as outward:
        stream = await connected(port, "out", files, size)
        total = sum(entry.size for entry in outward.manifest.entries)
        good(await send_files(stream, items(outward), final=True, sandbox_bytes=total))
        out_s = time.perf_counter() - begun_s
        await stream.aclose()
        await outward.remove()
    remove_place(place)
    return [in_s, out_s]
trio.run(main, act)
"""
)


def why_not() -> str:
    """Why this bench cannot run here; empty if it can."""
    if lack := pilotside.why_not("tar"):
        return lack
    free = shutil.disk_usage(MEMORY).free if MEMORY.is_dir() else 0
    return "" if free > 4 << 30 else f"{MEMORY} has no 4 GB free"


def run() -> list[Figure]:
    """The figures of this bench; takes about a minute."""
    figures: list[Figure] = []
    with Site.open("test", linger=True) as site, _memory(site) as (execute, plain), _submit_side() as port:
        ours = (str(execute), *_glexec(site))
        with _side(site, OURS, *ours) as us, _side(site, PLAIN, str(plain)) as them:
            for load, files, size in LOADS:
                asked = json.dumps([port, files, size])
                json.loads(answer(us, asked)), json.loads(answer(them, asked))  # warm
                pairs = [(json.loads(answer(us, asked)), json.loads(answer(them, asked))) for _ in range(RUNS)]
                mb = files * size / 1e6
                for way, place in (("in", 0), ("out", 1)):
                    figures.append(
                        Figure(
                            f"staging_{load}_{way}",
                            [mb / mine[place] for mine, _ in pairs],
                            "MB/s",
                            GOALS[load],
                            [mb / plain_s[place] for _, plain_s in pairs],
                        )
                    )
                figures.append(Figure(f"staging_{load}_tar", _tar(plain, files, size), "MB/s", note="tar | tar"))
    return figures


@contextmanager
def _memory(site: Site) -> Iterator[tuple[Path, Path]]:
    """Two directories of the pilot's in memory, the first as an execute directory; removed afterwards."""
    pilot = site.accounts["pilot"]
    top = Path(tempfile.mkdtemp(prefix="spbench-", dir=MEMORY))
    try:
        top.chmod(0o755)
        for name in ("execute", "plain"):
            (top / name).mkdir()
            os.chown(top / name, pilot.uid, pilot.gid)
        yield top / "execute", top / "plain"
    finally:
        shutil.rmtree(top)


def _glexec(site: Site) -> tuple[str, str, str]:
    """The site's switch, a credential of a user for the pilot, and the far side's programs."""
    assert site.installed is not None
    proxy = pilotside.credential(site, "bench")
    return str(site.installed.front), str(proxy), str(site.runtime.packages / "jobwrapper")


@contextmanager
def _submit_side() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", SUBMIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pilotside.go_first(process.pid)
    try:
        yield int(answer(process, None))
    finally:
        process.communicate()


@contextmanager
def _side(site: Site, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(site.runtime.python), "-c", program, *arguments]
    with speaking(command, site.environment(site.layout.pilot), site.accounts["pilot"]) as process:
        pilotside.go_first(process.pid)
        yield process


def _tar(top: Path, files: int, size: int) -> list[float]:
    """MB/s of tar to tar at root's account, from memory to memory."""
    source, target = top / "source", top / "target"
    for number in range(files):
        path = source / f"dir{number // 100}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for _ in range(max(1, size >> 20)):
                file.write(bytes(min(size, 1 << 20)))
    found = []
    pilotside.go_first(0)
    for _ in range(RUNS):
        target.mkdir()
        begun_s = time.perf_counter()
        subprocess.run(f"tar -c -C {source} . | tar -x -C {target}", shell=True, check=True)  # noqa: S602 - our names
        found.append(files * size / 1e6 / (time.perf_counter() - begun_s))
        shutil.rmtree(target)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    shutil.rmtree(source)
    return found
