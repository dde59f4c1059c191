"""A starter's part towards glexec and procd, as a program for the pilot's account: `python -m
tests.procd.standin`.

Arguments: procd's socket, the glexec front, the user's proxy, then the job's command with its marker as the
last word. Each line on standard input is a method of ProcdClient; its answer goes to standard output as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from pilot.calls import Call, Running
from pilot.switch import GlexecSwitch
from procd.client import ProcdClient
from starter.orphans import become_subreaper, reap_orphans
from tests.procd import world


async def run_job(front: str, credential: str, command: list[str]) -> tuple[Running, int]:
    null = os.open(os.devnull, os.O_RDWR)
    call = Call(tuple(command), "stand#1", Path(credential), stdin=null, control=True)
    running = await GlexecSwitch(front, None).start(call)
    os.close(null)

    def payload() -> list[int]:
        """By its marker and uid: the front and sudo carry the command line too."""
        return [pid for pid in world.marked(command[-1]) if world.uid_of(pid) not in (None, 0, os.geteuid())]

    found: list[int] = []

    def there() -> bool:
        found.extend(payload())
        return found != []

    await world.until(there, f"the payload: {running.errors()}")
    return running, min(found, key=world.ticks)


async def listens(running: Running) -> int | None:
    """The near end of the control socket, if a root part said hello."""
    if running.control is None:
        return None
    await trio.lowlevel.wait_readable(running.control)
    return running.control.fileno() if running.control.recv(512) else None


def wait_as_spawner() -> NoReturn:
    """The starter's parent in real life: gets the trees of starters that died."""
    os.closerange(0, 2)  # whoever speaks with the starter hears of its end
    while True:
        with suppress(ChildProcessError):
            os.wait()
            continue
        signal.pause()


async def steer(*arguments: str) -> None:
    path, front, credential, *command = arguments
    client = await ProcdClient.connect(path)
    running, pid = await run_job(front, credential, command)
    await client.register(
        "job",
        root_pid=pid,
        root_ticks=world.ticks(pid),
        starter_pid=os.getpid(),
        credential=credential,
        audit_id="stand#1",
        control_fd=await listens(running),
    )
    print(json.dumps({"pid": os.getpid()}), flush=True)
    async with trio.open_nursery() as nursery:
        # The first process of a namespace ends only when its zombies are reaped.
        nursery.start_soon(reap_orphans)
        async for line in trio.wrap_file(sys.stdin):
            asked = json.loads(line)
            answer = await getattr(client, asked["method"])("job", **asked["arguments"])
            print(json.dumps(None if answer is None else attrs.asdict(answer)), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    become_subreaper()
    if os.fork():
        wait_as_spawner()
    become_subreaper()  # a fork does not inherit it
    trio.run(steer, *sys.argv[1:])
