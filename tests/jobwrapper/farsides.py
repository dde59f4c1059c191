"""What several tests need: settings for a switch, the wrapper, and far sides that misbehave on purpose."""

from __future__ import annotations

import os
import stat
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

from attrs import frozen

from pilot.calls import Running
from pilot.switch import GlexecSwitch, NoneSwitch
from starter.sandbox import Context, Limits

WRAPPER = Path(__file__).resolve().parents[2] / "jobwrapper"
LIMITS = Limits(max_bytes=10_000_000, max_files=1000)

# What every far side of our own begins with: the hello, and frames.
SPEAK = """
import json, os, socket, struct, sys, array, signal, time
line = socket.socket(fileno=0)
def send(value):
    body = json.dumps(value).encode()
    line.sendall(struct.pack(">I", len(body)) + body)
def exactly(n):
    data = b""
    while len(data) < n:
        piece = line.recv(n - len(data))
        if not piece: sys.exit(1)
        data += piece
    return data
def receive():
    return json.loads(exactly(struct.unpack(">I", exactly(4))[0]))
def hello(): send({"hello": 1, "name": "mallory"})
"""


@frozen
class Settings:
    """As pilot.settings.Settings, the few fields that matter here."""

    sailplane_wrapper_dir: str = str(WRAPPER)
    glexec_retries: int = 0
    glexec_retry_delay: float = 0.0
    sailplane_switch: str = "none"
    glexec: str | None = None
    sailplane_pilot_proxy: str | None = None
    sailplane_wrapper_python: str = "/usr/bin/python3"


def wrapper_context(*, retries: int = 0) -> Context:
    """The real wrapper, at this account."""
    return Context(switch=NoneSwitch(), settings=Settings(glexec_retries=retries), audit_id="t#1", credential=None)


def hostile_context(directory: Path, program: str, *, retries: int = 0) -> Context:
    """A far side of the test's own instead of the wrapper."""
    directory.mkdir(exist_ok=True)
    (directory / "__main__.py").write_text(SPEAK + textwrap.dedent(program))
    settings = Settings(sailplane_wrapper_dir=str(directory), glexec_retries=retries)
    return Context(switch=NoneSwitch(), settings=settings, audit_id="t#1", credential=None)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return path


def scripted_glexec(path: Path, text: str, *, pilot_proxy: str | None = None) -> GlexecSwitch:
    return GlexecSwitch(script(path, text), pilot_proxy)


async def once(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def no_register(pid: int, start_ticks: int, running: Running) -> None:
    """For launches that nobody tracks."""


def tree(top: Path) -> dict[str, str]:
    """What lies below a directory: name -> kind and permissions."""
    found = {}
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(top))] = f"{'d' if stat.S_ISDIR(mode) else 'f'}{stat.S_IMODE(mode):o}"
    return found


def open_fds() -> set[str]:
    """Descriptors of this process: what a test must not leave behind."""
    return set(os.listdir("/proc/self/fd"))
