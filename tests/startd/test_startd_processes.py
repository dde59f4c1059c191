"""The startd's own processes are started again whatever ends them; what nobody expected ends it in words."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import trio

from pilot.rpc import Channel, ChannelClosed
from startd.processes import NotReady, Spawner, _ended, keep_running, procd_socket
from starter.messages import Activation

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@pytest.mark.parametrize("fault", [NotReady("killed at its start"), BlockingIOError(errno.EAGAIN, "fork")])
async def test_one_that_dies_before_it_is_ready_is_started_again(autojump_clock: object, fault: Exception) -> None:
    """procd killed while it is being restarted must not take the startd along; nor a host without a process for us."""
    tries: list[str] = []

    async def once(ready: Callable[[], None]) -> None:
        tries.append("try")
        if len(tries) == 2:
            raise fault
        ready()
        if len(tries) == 3:
            nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_running, "procd", once, LOG)
    assert len(tries) == 3


async def test_the_first_one_must_become_ready() -> None:
    async def once(ready: Callable[[], None]) -> None:
        raise NotReady("no such interpreter")

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_running, "procd", once, LOG)
    assert caught.group_contains(NotReady)


async def test_one_that_was_reaped_already_has_ended() -> None:
    process = _reaped()
    with trio.fail_after(30):
        await _ended(process)


def _reaped() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["true"])
    process.wait()
    return process


def test_a_port_that_is_taken_is_said_in_words(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "startd.conf"
        config.write_text(
            f"LOCAL_DIR = {tmp_path}\nSAILPLANE_SWITCH = none\nSTARTD_PORT = {taken.getsockname()[1]}\n"
            f"EXECUTE = {tmp_path}/execute\nSAILPLANE_RUN_DIR = {tmp_path}/run\nLOG = {tmp_path}/log\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "startd.main", "--config", str(config)], capture_output=True, text=True, timeout=30
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert "STARTD_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_procd_listens_in_a_directory_of_its_own_where_the_path_would_be_too_long(tmp_path: Path) -> None:
    with procd_socket(tmp_path) as usual:
        assert usual == tmp_path / "procd"
    with procd_socket(tmp_path / ("x" * 100)) as short:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(short))
        assert short.parent.stat().st_mode & 0o777 == 0o700
    assert not short.parent.exists()


async def test_a_starters_command_that_is_not_there_costs_the_job_its_start_only() -> None:
    command = "/nowhere/starter --one"
    spawner = Spawner(None, LOG, heard=lambda message: None, lost=lambda: None, starter_command=command)
    before = set(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        spawner._channel, spawner._nursery = cast(Channel, object()), nursery
        with pytest.raises(ChannelClosed, match=f"SAILPLANE_STARTER_COMMAND = {command} cannot be started"):
            await spawner.start(1, cast(Activation, None), (0, 1))
    assert set(os.listdir("/proc/self/fd")) == before
