"""Launching by the real wrapper at this account: a filled sandbox, a job from its start to its end."""

from __future__ import annotations

import trio

from pilot.outcomes import Exited, Signalled
from starter.launch import ExecFailed, Launched, LaunchSpec, launch
from starter.sandbox import Context, Place
from tests.jobwrapper.farsides import no_register, wrapper_context


def spec(place: Place, *argv: str, **changes) -> LaunchSpec:
    given = {"environment": {"PATH": "/usr/bin:/bin"}, "stdin": None, "stdout": "out", "stderr": "err"}
    return LaunchSpec(argv=argv, **{**given, "cwd": str(place.path), **changes})


async def run(place: Place, *argv: str, context: Context | None = None, **changes) -> Launched | ExecFailed:
    with trio.fail_after(60):
        return await launch(context or wrapper_context(), place, spec(place, *argv, **changes), register=no_register)


async def finish(place: Place, *argv: str, **changes) -> Exited | Signalled:
    """Run a job to its end; its outcome."""
    launched = await run(place, *argv, **changes)
    assert isinstance(launched, Launched)
    with trio.fail_after(60):
        outcome = await launched.wait()
    launched.running.close()
    assert isinstance(outcome, Exited | Signalled)
    return outcome


async def output(place: Place, *argv: str, **changes) -> str:
    assert await finish(place, *argv, **changes) == Exited(0)
    return (place.path / "out").read_text()
