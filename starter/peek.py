"""STARTER_PEEK (condor_tail): pieces of the running job's output, for its owner (wire reference 4.8).

The pilot cannot read the job's files: a call of the switch reads them at the job's account, which decides, too,
whether a name leads out of the sandbox. What it sends is not trusted, but is the job's own output anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from classad2 import ClassAd

from cedar.classads import evaluate, get_bool, get_int, get_str, set_str
from cedar.errors import PeerFault
from cedar.expressions import shield, unshield
from cedar.stream import CedarStream
from cedar.transferitems import CHUNK_BYTES, EMPTY_FILE
from pilot.farside import open_call, text_of
from starter.description import NULL_DEVICE, Description
from starter.entries import Context, StageFailed, check_owner, deadline, int_of, list_of, pair_of, raise_if_failed
from starter.places import Place

# All of one answer lies in memory, here and at the far side. condor_tail asks for 1,024 unless told otherwise.
MAX_BYTES = 1 << 20
# stdout, stderr, and no more of the job's list than anybody looks at.
MAX_FILES = 32
FROM_THE_END = -1
# What an answer calls stdout and stderr.
STDOUT, STDERR = 0, 1


class NotShown(Exception):
    """The owner gets no look, for a reason that he may know; ``retry``: it passes by itself.

    condor_tail tries again for ever when told to, so never for what would cost a call of the switch each time.
    """

    def __init__(self, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.text, self.retry = text, retry


@attrs.frozen
class Wanted:
    """One file that is asked for. ``label``: STDOUT, STDERR, or its name; ``path``: in the sandbox."""

    label: int | str
    path: str
    offset: int


@attrs.frozen
class Shown:
    """One piece of a file, from ``offset`` on."""

    label: int | str
    offset: int
    content: bytes = attrs.field(repr=False)


# -- deciding: values in, values out ----


def wanted_of(request: ClassAd, job: Description, job_ad: ClassAd) -> tuple[Wanted, ...]:
    """What a request asks for, as far as the job has it.

    Raises:
        NotShown: a file that is no output of the job, or nothing at all.
        PeerFault: a request of the wrong shape.
    """
    streams = {STDOUT: ("Out", job.stdout), STDERR: ("Err", job.stderr)}
    wanted = [
        Wanted(label, path, _offset(get_int(request, f"{name}Offset", FROM_THE_END)))
        for label, (name, path) in streams.items()
        if get_bool(request, name, False) and path != NULL_DEVICE
    ]
    named = {get_str(job_ad, name, ""): path for name, path in streams.values()}
    for name, offset in _named(request):
        path = named.get(name) or (name if name in (job.output_names or ()) else NULL_DEVICE)
        if path == NULL_DEVICE or not name:
            raise NotShown(f"{text_of(name)} is neither stdout nor stderr nor in transfer_output_files")
        wanted.append(Wanted(name, path, offset))
    if not wanted:
        raise NotShown("the job writes its stdout and stderr nowhere, and no other file was asked for")
    return tuple(wanted)


def _named(request: ClassAd) -> list[tuple[str, int]]:
    names, offsets = _list(request, "TransferFiles", str), _list(request, "TransferOffsets", int)
    if len(names) > MAX_FILES:
        raise NotShown(f"{len(names)} files at once are too many, {MAX_FILES} are allowed")
    if offsets and len(offsets) != len(names):
        raise PeerFault("peek", "a list of files and one of offsets that do not go together")
    return [
        (unshield(name), _offset(offset))
        for name, offset in zip(names, offsets or [FROM_THE_END] * len(names), strict=True)
    ]


def _list(request: ClassAd, name: str, kind: type) -> list[Any]:
    if name not in request:
        return []
    value = evaluate(request, name)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise PeerFault("peek", f"{name} is not a list of what it should be")
    return value


def _offset(asked: int) -> int:
    return max(asked, FROM_THE_END)


def limit_of(request: ClassAd) -> int:
    """How many bytes the answer may have in all."""
    asked = get_int(request, "MaxTransferBytes", MAX_BYTES)
    return MAX_BYTES if asked < 0 else min(asked, MAX_BYTES)


def head_of(shown: Sequence[Shown]) -> ClassAd:
    """The answer before the pieces."""
    ad = ClassAd()
    ad["Result"] = True
    ad["TransferFiles"] = [shield(one.label) if isinstance(one.label, str) else one.label for one in shown]
    ad["TransferOffsets"] = [one.offset for one in shown]
    return ad


def refusal(reason: NotShown) -> ClassAd:
    """The answer instead."""
    ad = ClassAd()
    ad["Result"], ad["Retry"] = False, reason.retry
    set_str(ad, "ErrorString", reason.text)
    return ad


# -- acting ----


async def look(
    context: Context, place: Place, wanted: Sequence[Wanted], limit_bytes: int, *, deadline_s: float
) -> list[Shown]:
    """One call of the switch.

    Raises:
        NotShown: a file that is not there, or not inside the sandbox.
        StageFailed: the call failed.
    """
    far = await open_call(context, "peek", deadline_s=deadline_s)
    try:
        check_owner(place, far.hello.uid)
        with deadline("show the files", deadline_s):
            files = [[one.path, one.offset] for one in wanted]
            await far.send({"path": str(place.path), "files": files, "limit": limit_bytes})
            answer = await far.receive()
            raise_if_failed(answer)
            rows = _rows(answer, wanted, limit_bytes)
            return [Shown(one.label, offset, await far.receive_exactly(size)) for one, offset, size in rows]
    finally:
        await far.end()


def _rows(answer: dict[str, Any], wanted: Sequence[Wanted], limit_bytes: int) -> list[tuple[Wanted, int, int]]:
    """(file, offset, size) of each, checked."""
    for name, why in map(pair_of, list_of(answer.get("missing"))):
        raise NotShown(f"{text_of(name)}: {why}")
    found = list_of(answer.get("found"))
    rows = [tuple(int_of(number) for number in list_of(row)) for row in found]
    if [row[:1] for row in rows] != [(index,) for index in range(len(wanted))] or any(len(row) != 3 for row in rows):
        raise StageFailed("framing", "not the files that were asked for")
    if any(min(row) < 0 for row in rows) or sum(row[2] for row in rows) > limit_bytes:
        raise StageFailed("limit", "more bytes than were asked for")
    return [(wanted[index], offset, size) for index, offset, size in rows]


async def send(stream: CedarStream, shown: Sequence[Shown]) -> None:
    """The answer. What stands for an empty file is the first item of the next message, not one of its own (T35)."""
    await stream.put(head_of(shown))
    waiting: list[int] = []
    for one in shown:
        await stream.put(*waiting, len(one.content), CHUNK_BYTES)
        for begin in range(0, len(one.content), CHUNK_BYTES):
            await stream.put(one.content[begin : begin + CHUNK_BYTES])
        waiting = [] if one.content else [EMPTY_FILE]
    await stream.put(*waiting, len(shown))
