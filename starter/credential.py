"""The job's proxy: fetched by delegation before any file, verified by us, held against the job.

The user's private key never crosses the wire: the key pair is made here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs

from cedar.commands import HoldCode
from pilot import credentials
from pilot.credentials import Credential, CredentialError
from starter.description import Description
from starter.shadow import Shadow
from starter.verdict import Hold

Exchange = Callable[[bytes], Awaitable[bytes]]


@attrs.frozen
class Trust:
    """Whom this site believes: directories of CAs and of VOMS servers."""

    certificates_dir: Path
    voms_dir: Path


@attrs.define
class Keys:
    """Keys for delegations: elliptic curve, made when needed; or RSA, as many as were made ahead by the startd, and
    after these made here, which blocks for some 40 ms."""

    ahead: list[bytes] = attrs.field(factory=list, repr=False)
    rsa: bool = False

    def request(self) -> credentials.PendingRequest:
        """A fresh key and its request."""
        if self.ahead:
            return credentials.request_with(self.ahead.pop())
        return credentials.make_request("rsa" if self.rsa else "ec")


class ProxyUnusable(Exception):
    """The proxy that came is not fit for the job; ``hold`` says so to the user, ``why`` in short."""

    def __init__(self, job: Description, why: str) -> None:
        self.hold = _hold(job, why)
        self.why = why
        super().__init__(self.hold.text)


async def receive_proxy(exchange: Exchange, keys: Keys) -> bytes:
    """One delegation: take a key, make the request, let ``exchange`` have it signed; the proxy as PEM.

    Raises:
        CredentialError: the certificates do not fit the request, or are expired.
        PeerFault: the connection failed.
    """
    pending = keys.request()
    return pending.complete(await exchange(pending.der))


async def fetch_proxy(shadow: Shadow, job: Description, trust: Trust, keys: Keys) -> Credential:
    """The job's proxy by get_delegated_proxy (303), verified and held against the job.

    ``expiration`` is never 0: that would override the user's own limit (wire reference 7.5).

    Raises:
        ProxyUnusable: expired, broken, untrusted, or not the proxy of the ad.
        PeerFault: the shadow could not delegate; the syscall socket is lost then.
    """
    try:
        pem = await shadow.fetch_proxy(wanted_end(job), lambda exchange: receive_proxy(exchange, keys))
        return check_proxy(pem, job, trust)
    except CredentialError as fault:
        raise ProxyUnusable(job, str(fault)) from fault


# "As long as the source proxy lives", where the user asked for no limit of his own, or for more than any proxy has.
MAX_LIFETIME_S = 30 * 86_400


def wanted_end(job: Description) -> int:
    """The expiration to ask for, unix time."""
    asked_s = job.proxy_lifetime_s if 0 < job.proxy_lifetime_s < MAX_LIFETIME_S else MAX_LIFETIME_S
    return int(time.time() + asked_s)


def check_proxy(pem: bytes, job: Description, trust: Trust) -> Credential:
    """Verify a proxy and hold it against the ad: the identity must be the ad's x509userproxysubject.

    Raises:
        CredentialError: verification failed.
        ProxyUnusable: somebody else's proxy.
    """
    credential = credentials.verify(pem, trust.certificates_dir, now=time.time(), voms_dir=trust.voms_dir)
    if job.proxy_subject and not credential.is_of(job.proxy_subject):
        raise ProxyUnusable(
            job,
            f"the delegated proxy belongs to {credential.identity}, but the job was submitted with a proxy of"
            f" {job.proxy_subject}",
        )
    user = job.user.rpartition("@")[0]
    if user.startswith("/") and not credential.is_of(user):
        raise ProxyUnusable(
            job,
            f"the delegated proxy belongs to {credential.identity}, but the submit side says that the user is {user}",
        )
    return credential


def same_as(old: Credential | None, new: Credential, job: Description) -> None:
    """Hold another proxy of a job against the one that it has.

    Raises:
        ProxyUnusable: of another identity, CA or primary FQAN.
    """
    change = "" if old is None else credentials.change_of(old, new)
    if change:
        raise ProxyUnusable(job, f"the proxy that came with the job's files is not the delegated one: {change}")


def _hold(job: Description, text: str) -> Hold:
    return Hold(
        HoldCode.CORRUPTED_CREDENTIAL,
        0,
        f"The proxy of job {job.job_id} cannot be used: {text.rstrip('.')}. Renew the proxy and release the job.",
    )
