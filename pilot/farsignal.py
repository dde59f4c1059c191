"""The near side of a signal through the switch: one call, whatever the number of processes.

For procd when no cheaper route reaches a family. Who the members are is the caller's knowledge; the far side
adds their descendants. What it reports is the word of the job's account: whether a family is empty is proved
by a scan here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from pilot.farside import Asking, CallFailed, FarSide, open_call

# On top of the time that the far side may take: its answer.
ANSWER_S = 5.0
# The job could stop the far side, and waiting for it would be the job's gain.
LOOK_S = 0.2
# What is stopped does not end by itself: its front is killed, and the kernel hangs up on the rest.
HOPELESS_S = 0.1


@frozen
class Sent:
    """What the far side did: signals sent and refused, members gone, survivors (up to 1000) and their
    number."""

    sent: int
    denied: int
    gone: int
    left: tuple[tuple[int, int], ...]
    left_count: int


@frozen
class Farewell:
    """What comes before a kill: one signal to the root, and at most `grace_s` seconds for it to end."""

    number: int
    grace_s: float


async def signal_far(
    asking: Asking,
    number: int,
    targets: Iterable[tuple[int, int]],
    *,
    tree: bool,
    limit_s: float,
    deadline_s: float,
    farewell: tuple[Farewell, tuple[int, int]] | None = None,
) -> Sent:
    """Deliver signal `number` to processes (pid, start tick) of the job's account; who they are is asked when the far
    side has spoken.

    SIGKILL and SIGSTOP always take the descendants too; others only with `tree`. The far side spends at most
    `limit_s` seconds, after a farewell (to one process, before the rest); `deadline_s` is for its hello, an attempt.
    Raises CallFailed. Cancelling does not take anything back.
    """
    grace_s = farewell[0].grace_s if farewell else 0.0
    end_s: float | None = None
    far = await open_call(asking, "signal", deadline_s=deadline_s)
    try:
        with trio.fail_after(grace_s + limit_s + ANSWER_S):
            await far.send(
                {
                    "signal": number,
                    "targets": [list(target) for target in targets],
                    "tree": tree,
                    "deadline_ms": int(limit_s * 1000),
                    "farewell": _farewell_words(farewell),
                }
            )
            answer = await _answer(far)
    except CallFailed as failed:
        end_s = HOPELESS_S if failed.code == "stopped" else None
        raise
    except trio.TooSlowError:
        raise CallFailed("timeout", f"no answer to signal {number} within {grace_s + limit_s + ANSWER_S:g} s") from None
    finally:
        await far.end(end_s)
    try:
        left = tuple((int(pid), int(tick)) for pid, tick in answer["left"])
        sent, denied, gone, left_count = (int(answer[word]) for word in ("sent", "denied", "gone", "left_count"))
        return Sent(sent, denied, gone, left, left_count)
    except (KeyError, TypeError, ValueError) as error:
        raise CallFailed("framing", "not the answer to a signal") from error


async def _answer(far: FarSide) -> dict[str, Any]:
    """The far side's answer; CallFailed("stopped") as soon as somebody at its account has stopped it."""
    answers: list[dict[str, Any]] = []
    failures: list[CallFailed] = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            try:
                answers.append(await far.receive())
            except CallFailed as failed:  # raised again below: a nursery would wrap it
                failures.append(failed)
            nursery.cancel_scope.cancel()

        nursery.start_soon(receive)
        while not _is_stopped(far.hello.pid):  # noqa: ASYNC110 - another account's process tells us nothing
            await trio.sleep(LOOK_S)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not answers:
        raise CallFailed("stopped", "the far side was stopped by a process of the job's account")
    return answers[0]


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False  # gone or hidden: the end of file, or the deadline, tells
    return stat.rpartition(b")")[2].split()[0] in b"Tt"  # by a signal, or by a tracer before it could not be traced


def _farewell_words(farewell: tuple[Farewell, tuple[int, int]] | None) -> dict[str, object] | None:
    if farewell is None:
        return None
    said, to = farewell
    return {"signal": said.number, "to": list(to), "grace_ms": int(said.grace_s * 1000)}
