"""A startd that may open nothing more for a while: what it does all the time goes on, or waits; nothing ends it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from cedar.claims import EXECUTE_SIDE
from cedar.client import Resume, connect
from cedar.commands import Command
from cedar.errors import PeerFault
from startd import nodeload
from startd.claim import State
from startd.janitor import Janitor
from startd.polling import PolicyWatch
from startd.starterends import REAP_EVERY_S, StarterEnds
from tests.startd.startdport import JOB, LOG, port


@contextmanager
def none_free() -> Iterator[None]:
    """This process may open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def ended_child() -> int:
    """One that nobody has waited for."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


async def test_what_looks_for_ended_starters_and_at_the_nodes_load_goes_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def clean(_private_dir: Path) -> None:
        raise AssertionError("nothing was left")

    async with port() as on:
        ends = StarterEnds(on.claims, Janitor(tmp_path, clean, LOG), LOG)
        watch = PolicyWatch(on.claims, on.held_ad, on.own_ad, LOG)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.reap)
            nursery.start_soon(watch.run)
            with none_free():
                with pytest.raises(OSError, match="open files"):
                    nodeload.look()
                await trio.sleep(3 * max(REAP_EVERY_S, on.claims.settings.polling_interval))
            pid = ended_child()
            await trio.sleep(3 * REAP_EVERY_S)
            assert str(pid) not in os.listdir("/proc"), "it is reaped, now that it can be found"
            nursery.cancel_scope.cancel()


async def test_an_activation_that_finds_no_descriptor_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: int) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with port() as on:
        held = await on.claim()
        with monkeypatch.context() as for_now:
            for_now.setattr("startd.claims.socket.socketpair", refuse)
            stream = await connect(
                on.address, Command.ACTIVATE_CLAIM, Resume(held.claim_id.session(EXECUTE_SIDE)), subsystem="SHADOW",
                deadline_s=60,
            )  # fmt: skip
            async with stream:
                await stream.put(held.claim_id.text, 2, JOB)
                with trio.fail_after(30):
                    assert (await stream.get()).int() == 1
                    with pytest.raises(PeerFault, match="closed"):
                        await stream.get()
        assert (held.life.state, held.ticket, held.starter) == (State.IDLE, None, None)
        reader = await on.say(Command.ACTIVATE_CLAIM, held.claim_id, held.claim_id.text, 2, JOB)
        assert reader is not None
        assert reader.int() == 1
        assert cast(State, held.life.state) is State.STARTING
