"""The near side of a signal through the switch: one call, whatever the number of processes.

For procd when no cheaper route reaches a family. Who the members are is the caller's knowledge; the far side
adds their descendants. What it reports is the word of the job's account: whether a family is empty is proved
by a scan here.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio
from attrs import frozen

from pilot.farside import Asking, CallFailed, open_call

# On top of the time that the far side may take: its answer.
ANSWER_S = 5.0


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
    """Deliver signal `number` to processes (pid, start tick) of the job's account.

    SIGKILL and SIGSTOP always take the descendants too; others only with `tree`. The far side spends at most
    `limit_s` seconds, after a farewell (to one process, before the rest); `deadline_s` is for its hello, an attempt.
    Raises CallFailed. Cancelling does not take anything back.
    """
    grace_s = farewell[0].grace_s if farewell else 0.0
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
            answer = await far.receive()
    except trio.TooSlowError:
        raise CallFailed("timeout", f"no answer to signal {number} within {grace_s + limit_s + ANSWER_S:g} s") from None
    finally:
        await far.end()
    try:
        left = tuple((int(pid), int(tick)) for pid, tick in answer["left"])
        sent, denied, gone, left_count = (int(answer[word]) for word in ("sent", "denied", "gone", "left_count"))
        return Sent(sent, denied, gone, left, left_count)
    except (KeyError, TypeError, ValueError) as error:
        raise CallFailed("framing", "not the answer to a signal") from error


def _farewell_words(farewell: tuple[Farewell, tuple[int, int]] | None) -> dict[str, object] | None:
    if farewell is None:
        return None
    said, to = farewell
    return {"signal": said.number, "to": list(to), "grace_ms": int(said.grace_s * 1000)}
