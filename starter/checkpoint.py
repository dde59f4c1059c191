"""The checkpoint step: what the job has written goes to the shadow, and the sandbox stays as it is.

A job that is checkpointed by itself (``checkpoint_exit_code``) ends with a status of its own choice once its files are
written. They are kept at the submit side, and come in again with the input wherever the job is started next. It is one
call of the switch, beside the three of a job's good path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from classad2 import ClassAd

from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from starter import updates
from starter.description import NULL_DEVICE, Description
from starter.events import CheckpointSent, Event, StepFailed
from starter.sandbox import Limits, Outward, StageFailed, Wanted, stage_out
from starter.transfer import Progress, TransferFailed, send_output, wanted_names
from starter.verdict import Hold
from starter.work import Work

log = logging.getLogger("starter")


def is_checkpoint(job: Description, wait_status: int) -> bool:
    """Whether this end says that the checkpoint is written. A core says nothing else."""
    return job.checkpoint_status is not None and wait_status & ~0x80 == job.checkpoint_status


def checkpoint_names(job: Description) -> tuple[str, ...] | None:
    """What is sent: ``transfer_checkpoint_files`` and the streams, or else what would be the output."""
    if job.checkpoint_names is None:
        return wanted_names(job)
    streams = dict.fromkeys(name for name in (job.stdout, job.stderr) if name != NULL_DEVICE)
    return (*streams, *(name for name in job.checkpoint_names if name not in streams))


async def send_checkpoint(
    work: Work, wanted: Wanted, *, last_number: int, goes_on: Callable[[int], Awaitable[bool]]
) -> Event:
    """Send it and get ready for the next leg. A failure that may pass is no reason to end the job: stock waits for the
    next checkpoint, too. ``goes_on``: whether the job has its next leg here; asked where nothing is lost by going."""
    number = last_number + work.legs + 1
    await work.shadow.wait_connected()
    try:
        async with stage_out(
            work.context(started=True),
            work.place,
            wanted,
            limits=Limits(
                max_bytes=work.settings.sailplane_max_output_bytes, max_files=work.settings.sailplane_max_output_files
            ),
            deadline_s=work.settings.sailplane_switch_deadline,
        ) as outward:
            failure = await _offer(work, outward)
    except StageFailed as fault:
        failure = _Failure(f"the files could not be read: {fault}", lasting=fault.code in ("limit", "name"))
    if failure is not None and failure.lasting:
        text = f"The checkpoint of job {work.description.job_id} could not be sent from {work.host}: {failure.text}"
        return StepFailed(Hold(HoldCode.FAILED_TO_CHECKPOINT, -1, updates.one_line(text)), sandbox=True)
    if failure is not None:
        log.warning("checkpoint %d was not sent (%s); the job goes on", number, failure.text)
    await _tell(work, number, sent=failure is None)
    if failure is None and not await goes_on(number):
        return CheckpointSent(go_on=False)
    work.begin_leg(work.usage)
    return CheckpointSent()


class _Failure:
    """Why a checkpoint was not sent; ``lasting``: the next one would not be either."""

    def __init__(self, text: str, *, lasting: bool) -> None:
        self.text, self.lasting = text, lasting


async def _offer(work: Work, outward: Outward) -> _Failure | None:
    if outward.manifest.missing:
        names = ", ".join(outward.manifest.missing)
        return _Failure(f"it did not write {names} (transfer_checkpoint_files)", lasting=True)
    progress = Progress(work.settings.starter_file_xfer_stall_timeout)
    try:
        await send_output(work.route, outward, work.description, None, progress, final=False)
    except TransferFailed as fault:
        return _Failure(fault.ack.reason, lasting=not fault.ack.retry)
    except (PeerFault, Refused) as fault:
        return _Failure(str(fault), lasting=False)
    return None


async def _tell(work: Work, number: int, *, sent: bool) -> None:
    """Its number goes to the queue with an update; the event says what became of it."""
    update = updates.checkpointed(work.usage, number, work.duration_s, int(time.time()))
    if sent:
        await work.shadow.register_job_info(update)
    event = ClassAd()
    event["EventType"] = "SuccessfulCheckpoint" if sent else "FailedCheckpoint"
    event["CheckpointNumber"] = number
    await work.shadow.notify(event)
