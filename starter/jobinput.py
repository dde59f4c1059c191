"""The step that makes the sandbox and fills it: from the shadow, through the first call of the switch.

Cancelled, it leaves what it has made by then to ``joboutput.clean``.
"""

from __future__ import annotations

from functools import partial

from cedar.classads import evaluate
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import TransferLimits
from pilot import logs
from starter import ahead, furnish, guided, tokens, updates
from starter.chirp import Delayed
from starter.chirpserver import ChirpServer
from starter.credential import check_proxy, same_as
from starter.description import CHIRP_CONFIG_NAME, WRAPPER_FAILURE_NAME
from starter.events import Event, StagedIn, StepFailed
from starter.failures import switch_verdict, transfer_verdict
from starter.fileplan import MB
from starter.guided import Filled
from starter.launch import Deadlines
from starter.sandbox import Inward, StageFailed, stage_in
from starter.transfer import InputSink, Progress, TransferFailed, fetch_input
from starter.urls import plugins_of, tell_results
from starter.verdict import Hold, Requeue
from starter.work import Work


async def fill_sandbox(work: Work) -> Event:
    """First call of the switch: the sandbox is made and filled, as often as the submit side wants."""
    return await guided.fill(work, partial(_fill_once, work))


async def _fill_once(work: Work) -> Filled:
    try:
        async with stage_in(
            work.context(),
            work.place,
            deadline_s=work.settings.sailplane_switch_deadline,
            authorised=partial(_open_launch_early, work),
        ) as inward:
            work.account = inward.account
            await work.prepared.wait()
            if work.called_off is not None:
                return Filled(StepFailed(work.called_off, sandbox=True))
            _open_launch_early(work)
            await _furnish(work, inward)
            sink = InputSink(
                inward,
                work.description,
                partial(_check_transferred, work),
                Progress(work.settings.starter_file_xfer_stall_timeout),
                work.keys,
                begun=lambda: _open_launch(work),
                plugins=lambda proxy: plugins_of(work, proxy=proxy),
            )
            try:
                await fetch_input(work.route, sink, _input_limits(work))
            except TransferFailed:
                await tell_results(work, "Input", sink.judged)
                raise
            await tell_results(work, "Input", sink.judged)
            if work.description.manifest_dir:
                await inward.note_what_is_there(work.description.manifest_dir)
            work.catalogue = await inward.finish()
            work.proxy_in_sandbox, work.proxy_copied = sink.proxy_stored, sink.proxy_copied
        return Filled(StagedIn())
    except StageFailed as fault:
        return Filled(StepFailed(switch_verdict(work, fault.outcome, str(fault)), sandbox=True))
    except TransferFailed as fault:
        verdict = transfer_verdict(fault, HoldCode.DOWNLOAD_FILE_ERROR)
        return Filled(StepFailed(verdict, sandbox=True), of_transfer=True)
    except tokens.TokensUnusable as fault:
        return Filled(StepFailed(Hold(HoldCode.CORRUPTED_CREDENTIAL, 0, updates.one_line(str(fault))), sandbox=True))
    except (PeerFault, Refused) as fault:
        requeue = Requeue(HoldCode.DOWNLOAD_FILE_ERROR, f"input transfer: {fault}")
        return Filled(StepFailed(requeue, sandbox=True), of_transfer=True)


async def _furnish(work: Work, inward: Inward) -> None:
    for name, data in work.ads.items():
        await furnish.lay(inward, name, data, furnish.OPEN)
    if work.settings.user_job_wrapper is not None:
        await furnish.lay(inward, WRAPPER_FAILURE_NAME, b"", furnish.OPEN)
    if work.description.services:
        work.tokens = await tokens.fetch(work.shadow)
        await furnish.lay_credentials(inward, work.tokens.files)
    await _furnish_chirp(work, inward)


async def _furnish_chirp(work: Work, inward: Inward) -> None:
    """A job that may use none of it gets no server."""
    settings = work.settings
    allowed = {
        "files": settings.enable_chirp_io,
        "updates": settings.enable_chirp_updates,
        "delayed": settings.enable_chirp_delayed,
    }
    wishes = frozenset(wish for wish in work.description.chirp if settings.enable_chirp and allowed[wish])
    if not wishes:
        return
    assert work.job_ad is not None
    patterns = settings.chirp_delayed_update_prefix.replace(",", " ").split()
    delayed = Delayed(patterns, settings.chirp_delayed_update_max_attrs)
    if work.chirp is not None:  # of a try before this one; nobody has talked to it
        await work.chirp.aclose()
    work.chirp = ChirpServer(work.shadow, wishes, delayed, work.job_ad, logs.get("chirp", slot=work.host))
    await furnish.lay(inward, CHIRP_CONFIG_NAME, await work.chirp.open(), furnish.PRIVATE)


def _open_launch_early(work: Work) -> None:
    """Where the shadow lets the job start, and input surely does not wait. A token that is not there holds the job:
    until all have come the call would be one too many."""
    if not work.prepared.is_set() or work.called_off is not None:
        return
    if work.description.services and work.tokens is None:
        return
    if work.ahead is not None and work.ahead.input_comes_at_once():
        _open_launch(work)


def _open_launch(work: Work) -> None:
    """Input is about to arrive, or has begun to, and is short: the launch's call may be opened meanwhile."""
    assert work.job_ad is not None
    if work.description.deferral is not None:
        return  # who knows when it is launched
    if work.ahead is not None and ahead.is_short(evaluate(work.job_ad, "TransferInputSizeMB")):
        work.ahead.open(work.context(once=True), ahead.LAUNCH, deadline_s=Deadlines().hello_s, control=True)


def _check_transferred(work: Work, pem: bytes) -> None:
    """The proxy that came with the files enters the sandbox only if it is the one by which the site let us in, or a
    renewal of it.

    Raises:
        CredentialError, ProxyUnusable: it is not.
    """
    same_as(work.credential, check_proxy(pem, work.description, work.trust), work.description)


def _input_limits(work: Work) -> TransferLimits:
    """The slot's disk, and the job's own limit, which counts before the knob for all jobs."""
    settings, asked = work.settings, work.description.files.max_input_bytes
    knob = None if settings.max_transfer_input_mb < 0 else settings.max_transfer_input_mb * MB
    own = knob if asked is None else asked
    most = work.activation.disk_kb * 1024
    return TransferLimits(max_bytes=most if own is None else min(own, most))
