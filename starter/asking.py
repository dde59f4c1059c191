"""The first steps of an activation: the shadow is asked for the job, told who we are, and delegates the job's proxy.

A step may be cancelled at any moment; what it has made by then is in ``Work``.
"""

from __future__ import annotations

import errno

from classad2 import ClassAd

from cedar.claims import EXECUTE_SIDE, ClaimId
from cedar.classads import get_str
from cedar.commands import HoldCode
from cedar.errors import PeerFault
from cedar.sinful import Sinful
from pilot import credentials, logs
from pilot.ledger import note_identity
from starter import around, furnish, guided, launching, updates
from starter.credential import ProxyUnusable, fetch_proxy
from starter.description import Unrunnable, describe
from starter.events import CredentialStored, Event, JobKnown, StepFailed
from starter.guidance import told_version
from starter.renewal import record
from starter.transfer import Route
from starter.verdict import Hold, Requeue, Verdict, hold_for_user_refused
from starter.work import Work


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
    info = updates.starter_info(
        work.activation,
        str(work.place.path),
        work.settings.uid_domain,
        reconnects=reconnects,
        version=told_version(work.shadow_version),
    )
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
    work.called_off = await guided.set_up(work)
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
