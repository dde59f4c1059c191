"""The last steps at the sandbox: output to the shadow through the third call of the switch, and the sandbox removed.

A step may be cancelled at any moment; what is left then is found again by ``clean``.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

from cedar.classads import get_int
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import Ack
from starter import ahead, checkpoint, leftovers, updates
from starter.checkpoint import checkpoint_names
from starter.events import Cleaned, Event, JobEnded, StagedOut, StepFailed
from starter.failures import switch_verdict, transfer_verdict
from starter.fileplan import MB
from starter.reporting import now, tell_usage_ahead
from starter.sandbox import Changed, Left, Limits, Listed, Outward, StageFailed, Wanted, remove_place, stage_out
from starter.streams import END_WITHIN_S
from starter.transfer import Progress, TransferFailed, UrlOutput, left_out, missing_output, send_output, wanted_names
from starter.urls import plugins_of, tell_results
from starter.verdict import Exited, Hold, Requeue, Verdict, is_final
from starter.work import Work

# Output is offered again after a transient failure, on the same stream of the far side.
OUTPUT_TRIES = 3
# So often to a shadow that has come back. One whose socket was cut has forgotten the key of its transfers (T21).
MAX_RETURNS = 20
# The end of a shadow is seen on all its connections within milliseconds.
LOSS_SEEN_WITHIN_S = 1.0


def open_output(work: Work) -> None:
    """The job has ended by itself: stage-out's call may be opened while its family is proved empty.

    Where the far side has the pilot's own account procd could take it for one of the job's orphans.
    """
    if work.ahead is not None and work.switch.isolates:
        work.ahead.open(work.context(once=True), ahead.STAGE_OUT, deadline_s=work.settings.sailplane_switch_deadline)


async def send_sandbox(work: Work, verdict: Verdict, ended: JobEnded | None = None) -> Event:
    """Third call of the switch: output to the shadow, then the sandbox is removed, and the shadow told meanwhile what
    the job has used.

    Of a job that did not end by itself listed output may be missing, and the submit side keeps what there is for the
    next start, unless it asked for it as the job's last.
    """
    failed: Verdict | None = None
    await work.shadow.wait_connected()
    refused = await _streams_over(work)
    if refused is not None and isinstance(verdict, Exited):
        return StepFailed(refused, sandbox=True)
    try:
        uploads = UrlOutput.of(
            work.description, lambda: plugins_of(work, proxy=work.proxy_in_sandbox), final=is_final(verdict)
        )
        async with stage_out(
            work.context(started=True),
            work.place,
            _wanted(work, wanted_names(work.description, failed=_failed(work, verdict)), work.description.manifest_dir),
            limits=_output_limits(work),
            uploads=uploads,
            deadline_s=work.settings.sailplane_switch_deadline,
            far=await ahead.taken(work.ahead, ahead.STAGE_OUT),
            see_out=work.ahead.see_out if work.ahead is not None else None,
        ) as outward:
            complete = isinstance(verdict, Exited) and not _failed(work, verdict)
            await tell_results(work, "Output", uploads.judged if uploads is not None else ())
            failed = await _offer_output(work, outward, uploads, complete=complete, final=is_final(verdict))
            if note := left_out(outward.manifest, work.host):
                await work.shadow.log_event(updates.note_event(note, work.host, now()))
            async with trio.open_nursery() as nursery:
                if failed is None:
                    nursery.start_soon(tell_usage_ahead, work, verdict, ended)
                emptied = await _emptied(work, outward)
    except StageFailed as fault:
        return StepFailed(_output_verdict(work, fault), sandbox=True)
    left = _remove_place(work) if emptied else (await clean(work)).left
    if failed is not None:
        return StepFailed(failed, sandbox=bool(left))
    return StagedOut(left)


async def send_checkpoint(work: Work, goes_on: Callable[[int], Awaitable[bool]]) -> Event:
    """A call of its own: the checkpoint to the shadow; the sandbox stays. ``goes_on``: as ``starter.checkpoint``'s."""
    assert work.job_ad is not None
    last = get_int(work.job_ad, "CheckpointNumber", -1)
    wanted = _wanted(work, checkpoint_names(work.description))
    return await checkpoint.send_checkpoint(work, wanted, last_number=last, goes_on=goes_on)


async def _streams_over(work: Work) -> Verdict | None:
    """Until the submit side has all that was streamed; why it has not, if it refused."""
    for stream in work.streams:
        with trio.move_on_after(END_WITHIN_S):
            await stream.over.wait()
    return next((stream.broken.hold for stream in work.streams if stream.broken is not None), None)


def _failed(work: Work, verdict: Verdict) -> bool:
    return isinstance(verdict, Exited) and work.description.files.failed(verdict.wait_status)


def _output_limits(work: Work) -> Limits:
    """The site's: nothing is fetched that exceeds them."""
    settings = work.settings
    return Limits(max_bytes=settings.sailplane_max_output_bytes, max_files=settings.sailplane_max_output_files)


def _max_output_bytes(work: Work) -> int | None:
    """The job's own, which counts before the knob for all jobs: what is within it is sent, as stock does."""
    settings, asked = work.settings, work.description.files.max_output_bytes
    knob = None if settings.max_transfer_output_mb < 0 else settings.max_transfer_output_mb * MB
    return knob if asked is None else asked


def _wanted(work: Work, names: tuple[str, ...] | None, manifest: str = "") -> Wanted:
    if names is not None:
        return Listed(names, preserve=work.description.files.preserve_paths, manifest=manifest)
    assert work.catalogue is not None
    return Changed(work.catalogue, manifest)


async def _offer_output(
    work: Work, outward: Outward, uploads: UrlOutput | None, *, complete: bool, final: bool
) -> Verdict | None:
    """Send; after a transient failure, and to a shadow that has come back, ask the far side for the same again. The
    verdict if it never went through."""
    own = uploads.failure if uploads is not None else None
    own = own or (missing_output(outward.manifest, work.host) if complete else None)
    tries = returns = 0
    while True:
        route = work.route
        failed, again = await _try_output(work, outward, own, uploads, final=final)
        tries += 1
        if failed is None or not again or tries == OUTPUT_TRIES or returns == MAX_RETURNS:
            return failed
        await _shadow_there(work)
        if work.route is not route:
            tries, returns = 0, returns + 1
        await outward.again()


async def _try_output(
    work: Work, outward: Outward, own: Ack | None, uploads: UrlOutput | None, *, final: bool
) -> tuple[Verdict | None, bool]:
    """What it failed with, if it did, and whether the same may work again."""
    try:
        progress = Progress(work.settings.starter_file_xfer_stall_timeout)
        await send_output(
            work.route,
            outward,
            work.description,
            own,
            progress,
            final=final,
            uploads=uploads,
            max_bytes=_max_output_bytes(work),
        )
    except TransferFailed as fault:
        return transfer_verdict(fault, HoldCode.UPLOAD_FILE_ERROR), fault.ack.retry
    except (PeerFault, Refused) as fault:
        return Requeue(HoldCode.UPLOAD_FILE_ERROR, f"output transfer: {fault}"), True
    return None, False


async def _shadow_there(work: Work) -> None:
    """A broken transfer is often the first sign of a shadow that is gone: then wait for it to come back.

    Raises:
        PeerFault: it was given up.
    """
    with trio.move_on_after(LOSS_SEEN_WITHIN_S):
        await work.shadow.wait_gone()
    await work.shadow.wait_connected()


# What the output itself is to blame for: the owner is told. Anything else is the site's trouble.
_OUTPUT_FAULTS = {
    "limit": HoldCode.MAX_TRANSFER_OUTPUT_SIZE,
    "name": HoldCode.UPLOAD_FILE_ERROR,
    "tar": HoldCode.UPLOAD_FILE_ERROR,
    "framing": HoldCode.UPLOAD_FILE_ERROR,
}


def _output_verdict(work: Work, fault: StageFailed) -> Verdict:
    if fault.code in _OUTPUT_FAULTS:
        text = f"the output of job {work.description.job_id} was refused on {work.host}: {fault.text}"
        return Hold(_OUTPUT_FAULTS[fault.code], 0, updates.one_line(text))
    return switch_verdict(work, fault.outcome, f"output of the job: {fault}")


async def _emptied(work: Work, outward: Outward) -> bool:
    """What has become of the output is known by now: it is not offered again for a sandbox that cannot be emptied."""
    try:
        await _remove(work, outward)
    except StageFailed:
        return False
    return True


async def clean(work: Work) -> Cleaned:
    """The sandbox is removed without output; through the switch if something of the user's lies in it."""
    if not _sandbox_exists(work):
        return Cleaned(_remove_place(work))
    try:
        async with stage_out(
            work.context(),  # what is left is the janitor's, and the job need not wait for it
            work.place,
            Listed(()),
            limits=Limits(max_bytes=0, max_files=0),
            deadline_s=work.settings.sailplane_switch_deadline,
            far=await ahead.taken(work.ahead, ahead.STAGE_OUT),
        ) as outward:
            await _remove(work, outward)
    except StageFailed as fault:
        return Cleaned(f"sandbox {work.place.root} could not be emptied: {fault}")
    return Cleaned(_remove_place(work))


async def _remove(work: Work, outward: Outward) -> None:
    """Empty the sandbox; what the job left elsewhere goes, too, or is noted."""
    search = leftovers.search(work.settings, work.switch, work.place, work.since_ns)
    work.elsewhere = await outward.remove(search)


def _sandbox_exists(work: Work) -> bool:
    return os.path.lexists(work.place.path)


def _remove_place(work: Work) -> str:
    try:
        remove_place(work.place)
    except Left as left:
        return str(left)
    return ""
