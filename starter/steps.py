"""The steps of an activation, one function each: work in, one fact out. What follows is decided by ``starter.life``.

A step may be cancelled at any moment; what it has made by then is in ``Work``, or is found again by ``clean``.
"""

from __future__ import annotations

import errno
import math
import os
import time
from contextlib import suppress
from functools import partial

import trio
from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import evaluate, get_int, get_str
from cedar.commands import HoldCode
from cedar.errors import PeerFault, Refused
from cedar.filetransfer import Ack, TransferLimits
from cedar.sinful import Sinful
from pilot import credentials, logs, standing
from pilot.ledger import identity_of, note_identity
from pilot.outcomes import Denied, Misused, Outcome, Unavailable
from pilot.rpc import RpcRefused
from starter import ahead, around, checkpoint, furnish, launching, leftovers, orphans, tokens, updates
from starter.checkpoint import checkpoint_names
from starter.chirp import Delayed
from starter.chirpserver import ChirpServer
from starter.credential import ProxyUnusable, check_proxy, fetch_proxy, same_as
from starter.description import CHIRP_CONFIG_NAME, WRAPPER_FAILURE_NAME, Unrunnable, describe
from starter.events import (
    Cleaned,
    CredentialStored,
    Event,
    FamilyStopped,
    JobKnown,
    StagedIn,
    StagedOut,
    StepFailed,
)
from starter.fileplan import MB
from starter.killsignal import soft_signal
from starter.launch import Deadlines
from starter.renewal import record
from starter.reporting import now
from starter.sandbox import (
    Changed,
    Inward,
    Left,
    Limits,
    Listed,
    Outward,
    StageFailed,
    Wanted,
    remove_place,
    stage_in,
    stage_out,
)
from starter.streams import END_WITHIN_S
from starter.transfer import (
    InputSink,
    Progress,
    Route,
    TransferFailed,
    UrlOutput,
    fetch_input,
    left_out,
    missing_output,
    send_output,
    wanted_names,
)
from starter.urls import plugins_of, tell_results
from starter.verdict import Exited, Hold, Requeue, Verdict, hold_for_user_refused, is_final
from starter.work import PROCD_FAULTS, Work

# Output is offered again after a transient failure, on the same stream of the far side.
OUTPUT_TRIES = 3
# So often to a shadow that has come back. One whose socket was cut has forgotten the key of its transfers (T21).
MAX_RETURNS = 20
# The end of a shadow is seen on all its connections within milliseconds.
LOSS_SEEN_WITHIN_S = 1.0
# The end of the job's first process is known to the kernel when its family is empty; the switch needs a moment to tell.
END_KNOWN_WITHIN_S = 10.0
# A kill that failed for the switch is repeated after so long; procd has tried for KILLING_TIMEOUT.
BETWEEN_KILLS_S = 5.0
# Within what the startd allows beyond KILLING_TIMEOUT (``startd.claims.END_MARGIN_S``), with time to report.
ASKED_KILL_S = 45.0


# --- ask ---------------------------------------------------------------------------------------------------------


async def ask(work: Work) -> Event:
    """The job. One that is refused is so by a starter that the shadow knows."""
    ad = await work.shadow.get_job_info()
    commands = around.allowed(work.settings.starter_allow_job_pre_and_post_cmd, work.activation.slot_ad, ad)
    try:
        description = describe(ad, commands=commands)
        Sinful.parse(get_str(ad, "TransferSocket"))
    except (Unrunnable, PeerFault) as fault:
        code = fault.code if isinstance(fault, Unrunnable) else HoldCode.IWD_ERROR
        hold = Hold(code, errno.EINVAL, updates.one_line(str(fault)))
        return JobKnown(has_proxy=False, output_on_evict=False, refusal=hold)
    work.know(ad, description)
    if not commands and (ignored := around.named(ad)):
        text = "%s of the job ignored: STARTER_ALLOW_JOB_PRE_AND_POST_CMD is not true for it"
        logs.get("starter", slot=work.host).warning(text, " and ".join(ignored))
    refusal = launching.missed(description.deferral, work.host) or _refuse_without_proxy(work)
    if refusal is not None:
        await introduce(work)
    return JobKnown(
        has_proxy=description.proxy_name is not None,
        output_on_evict=description.output_on_evict,
        refusal=refusal,
    )


async def introduce(work: Work) -> None:
    """The shadow is told who we are, and says how the job's files are reached.

    Raises:
        PeerFault, ShadowRefused: the shadow is lost.
    """
    assert work.job_ad is not None
    reconnects = work.description.lease_s > 0
    info = updates.starter_info(work.activation, str(work.place.path), work.settings.uid_domain, reconnects=reconnects)
    await work.shadow.register_starter_info(info)
    told = await work.shadow.get_transfer_session()
    session = ClaimId.from_parts(told.session_id, told.info, told.key).session(EXECUTE_SIDE)
    address, key = Sinful.parse(get_str(work.job_ad, "TransferSocket")), get_str(work.job_ad, "TransferKey")
    work.know_route(Route(address, session, key))
    await work.shadow.register_job_info(updates.provisioned(work.activation))


async def prepare(work: Work) -> None:
    """What stage-in needs beside the switch: there is time for it while the first call is under way.

    Raises:
        PeerFault, ShadowRefused: the shadow is lost; ``work.prepared`` is never set then.
    """
    assert work.job_ad is not None
    await introduce(work)
    work.ads = furnish.ad_files(work.job_ad, ClassAd(work.activation.slot_ad))
    work.prepared.set()


def _refuse_without_proxy(work: Work) -> Verdict | None:
    if work.description.proxy_name is not None or not work.switch.needs_credential:
        return None
    return hold_for_user_refused(
        f"{work.description.user} (job {work.description.job_id} has no proxy: set x509userproxy or use_x509userproxy)",
        work.host,
        "",
    )


async def fetch_credential(work: Work) -> Event:
    """The job's proxy by delegation, before any file."""
    try:
        credential = await fetch_proxy(work.shadow, work.description, work.trust, work.keys)
    except ProxyUnusable as fault:
        record(work, "proxy-refused", why=fault.why)
        await introduce(work)
        return StepFailed(fault.hold, sandbox=False)
    work.credential = credential
    path = work.credential_path
    assert path is not None
    try:
        credentials.store_private(path, credential.pem, durable=False)
        note_identity(path, credential.identity, credential.role)
    except OSError as fault:
        text = f"the job's proxy could not be stored on {work.host}: {fault.strerror}"
        return StepFailed(Requeue(HoldCode.CORRUPTED_CREDENTIAL, text), sandbox=False)
    return CredentialStored()


# --- stage in ----------------------------------------------------------------------------------------------------


async def fill_sandbox(work: Work) -> Event:
    """First call of the switch: the sandbox is made and filled."""
    try:
        async with stage_in(work.context(), work.place, deadline_s=work.settings.sailplane_switch_deadline) as inward:
            work.account = inward.account
            await work.prepared.wait()
            await _furnish(work, inward)
            sink = InputSink(
                inward,
                work.description,
                partial(_check_transferred, work),
                _progress(work),
                work.keys,
                begun=lambda: _open_launch(work),
                plugins=lambda proxy: plugins_of(work, proxy=proxy),
            )
            await fetch_input(work.route, sink, _input_limits(work))
            await tell_results(work, "Input", sink.judged)
            work.catalogue = await inward.finish()
            work.proxy_in_sandbox, work.proxy_copied = sink.proxy_stored, sink.proxy_copied
        return StagedIn()
    except StageFailed as fault:
        return StepFailed(_switch_verdict(work, fault.outcome, str(fault)), sandbox=True)
    except TransferFailed as fault:
        return StepFailed(_transfer_verdict(fault, HoldCode.DOWNLOAD_FILE_ERROR), sandbox=True)
    except tokens.TokensUnusable as fault:
        return StepFailed(Hold(HoldCode.CORRUPTED_CREDENTIAL, 0, updates.one_line(str(fault))), sandbox=True)
    except (PeerFault, Refused) as fault:
        return StepFailed(Requeue(HoldCode.DOWNLOAD_FILE_ERROR, f"input transfer: {fault}"), sandbox=True)


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
    work.chirp = ChirpServer(work.shadow, wishes, delayed, work.job_ad, logs.get("chirp", slot=work.host))
    await furnish.lay(inward, CHIRP_CONFIG_NAME, await work.chirp.open(), furnish.PRIVATE)


def _open_launch(work: Work) -> None:
    """Input has begun to arrive, and is short: the launch's call may be opened meanwhile."""
    assert work.job_ad is not None
    if work.description.deferral is not None:
        return  # who knows when it is launched
    if work.ahead is not None and ahead.is_short(evaluate(work.job_ad, "TransferInputSizeMB")):
        work.ahead.open(work.context(once=True), ahead.LAUNCH, deadline_s=Deadlines().hello_s, control=True)


def open_output(work: Work) -> None:
    """The job has ended by itself: stage-out's call may be opened while its family is proved empty.

    Where the far side has the pilot's own account procd could take it for one of the job's orphans.
    """
    if work.ahead is not None and work.switch.isolates:
        work.ahead.open(work.context(once=True), ahead.STAGE_OUT, deadline_s=work.settings.sailplane_switch_deadline)


def _check_transferred(work: Work, pem: bytes) -> None:
    """The proxy that came with the files enters the sandbox only if it is the one by which the site let us in, or a
    renewal of it.

    Raises:
        CredentialError, ProxyUnusable: it is not.
    """
    same_as(work.credential, check_proxy(pem, work.description, work.trust), work.description)


def _progress(work: Work) -> Progress:
    return Progress(work.settings.starter_file_xfer_stall_timeout)


def _input_limits(work: Work) -> TransferLimits:
    """The slot's disk, and the job's own limit, which counts before the knob for all jobs."""
    settings, asked = work.settings, work.description.files.max_input_bytes
    knob = None if settings.max_transfer_input_mb < 0 else settings.max_transfer_input_mb * MB
    own = knob if asked is None else asked
    most = work.activation.disk_kb * 1024
    return TransferLimits(max_bytes=most if own is None else min(own, most))


def _switch_verdict(work: Work, outcome: Outcome | None, text: str) -> Verdict:
    """Denied holds the job, also before it started unless GLEXEC_HOLD_ON_INITIAL_FAILURE is False; everything else
    is the site's trouble and sends it back to idle."""
    if isinstance(outcome, Denied):
        who = work.credential.identity if work.credential else work.description.user
        hold = hold_for_user_refused(who, work.host, updates.one_line(outcome.text))
        if work.launched is None and not work.settings.glexec_hold_on_initial_failure:
            return Requeue(hold.code, hold.text)
        return hold
    if isinstance(outcome, Unavailable):
        text = f"the site's authorisation is not available on {work.host}: {outcome.text}"
    elif isinstance(outcome, Misused):
        text = f"the identity switch of {work.host} cannot be used for this job: {outcome.text}"
    return Requeue(HoldCode.GLEXEC_CHOWN_SANDBOX_TO_USER, updates.one_line(text))


def _transfer_verdict(fault: TransferFailed, code: HoldCode) -> Verdict:
    ack = fault.ack
    if ack.retry:
        return Requeue(ack.hold_code or code, ack.reason)
    return Hold(ack.hold_code or code, ack.hold_subcode, ack.reason)


# --- launch ------------------------------------------------------------------------------------------------------


async def start_job(work: Work) -> Event:
    """Second call of the switch."""
    return await launching.start_job(work, _switch_verdict)


# --- stop --------------------------------------------------------------------------------------------------------


async def stop(work: Work, *, soft: bool) -> Event:
    """The family is stopped until it is empty, proved by a full scan."""
    if not work.registered:
        return FamilyStopped(())
    try:
        return await _stop(work, soft=soft)
    except PROCD_FAULTS:
        return await _stopped_without_procd(work)


async def _stopped_without_procd(work: Work) -> FamilyStopped:
    """procd ends with the startd, and stops every family before: what of the job is left would be below us by now.

    Where somebody is left, or the job's end cannot be seen, the slot is not used until somebody has looked.
    """
    if work.launched is not None:
        with trio.move_on_after(END_KNOWN_WITHIN_S):
            await work.ended.wait()
    if work.launched is None or work.ended.is_set():
        left = orphans.strangers()
        return FamilyStopped(tuple(sorted(left)))
    return FamilyStopped((work.launched.pid,))


async def _stop(work: Work, *, soft: bool) -> Event:
    if soft and work.suspended:
        with suppress(RpcRefused):  # one that cannot be woken is killed asleep
            await work.procd.resume(work.family)
    soft = soft and not work.ended.is_set()
    stopped = await work.procd.stop(
        work.family,
        urgent=not soft,
        deadline_s=work.settings.killing_timeout,
        soft=await soft_signal(work) if soft else 0,
        grace_s=_grace_s(work),
    )
    # Nobody waits for a job that has ended by itself; for others the startd does, and kills a starter that is late.
    give_up_s = math.inf if work.ended.is_set() else trio.current_time() + ASKED_KILL_S
    while not stopped.empty and trio.current_time() < give_up_s and await _switch_may_come_back(work):
        stopped = await work.procd.stop(work.family, urgent=True, deadline_s=work.settings.killing_timeout)
    left = await _stop_guests(work)
    if stopped.empty and work.launched is not None:
        with trio.move_on_after(END_KNOWN_WITHIN_S):
            await work.ended.wait()
    if stopped.empty:
        work.usage = work.used(await work.procd.unregister(work.family))
        work.registered = False
    return FamilyStopped((*stopped.survivors, *left))


async def _switch_may_come_back(work: Work) -> bool:
    """Whether it was the switch that kept us from a kill, and there is time for another one; waits a little."""
    if work.credential is None or work.credential_path is None or work.credential.usable_until <= time.time():
        return False
    key, _ = identity_of(work.credential_path)
    if not standing.in_doubt(work.ledger.read(), key):
        return False
    await trio.sleep(BETWEEN_KILLS_S)
    return True


async def _stop_guests(work: Work) -> list[int]:
    """Sessions of the job's owner end with the job, and hard."""
    left: list[int] = []
    for family in sorted(work.guests.families):
        try:
            stopped = await work.procd.stop(family, urgent=True, deadline_s=work.settings.killing_timeout)
        except RpcRefused:  # it ended by itself meanwhile
            continue
        left += stopped.survivors
    return left


def _grace_s(work: Work) -> float:
    """As much time as job and slot agree on, and no more than half of what the proxy has left: the other half is for
    the kill, the output and the sandbox."""
    asked_s, most_s = work.description.vacate_s, work.activation.vacate_max_s
    agreed_s = most_s if asked_s < 0 else min(asked_s, most_s)
    if work.credential is None:
        return agreed_s
    return min(agreed_s, max(0.0, (work.credential.usable_until - time.time()) / 2))


# --- stage out ---------------------------------------------------------------------------------------------------


async def send_sandbox(work: Work, verdict: Verdict) -> Event:
    """Third call of the switch: output to the shadow, then the sandbox is removed.

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
            _wanted(work, wanted_names(work.description, failed=_failed(work, verdict))),
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
            emptied = await _emptied(work, outward)
    except StageFailed as fault:
        return StepFailed(_output_verdict(work, fault), sandbox=True)
    left = _remove_place(work) if emptied else (await clean(work)).left
    if failed is not None:
        return StepFailed(failed, sandbox=bool(left))
    return StagedOut(left)


async def send_checkpoint(work: Work) -> Event:
    """A call of its own: the checkpoint to the shadow; the sandbox stays."""
    assert work.job_ad is not None
    last = get_int(work.job_ad, "CheckpointNumber", -1)
    wanted = _wanted(work, checkpoint_names(work.description))
    return await checkpoint.send_checkpoint(work, wanted, last_number=last)


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


def _wanted(work: Work, names: tuple[str, ...] | None) -> Wanted:
    if names is not None:
        return Listed(names, preserve=work.description.files.preserve_paths)
    assert work.catalogue is not None
    return Changed(work.catalogue)


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
        progress = _progress(work)
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
        return _transfer_verdict(fault, HoldCode.UPLOAD_FILE_ERROR), fault.ack.retry
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
    return _switch_verdict(work, fault.outcome, f"output of the job: {fault}")


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
