"""What a spare starter does until its activation comes: the first steps of a job, with a shadow that stands in.

A forked process copies each page that it writes to, and Python writes to whatever it uses: two thirds of the pages that
a starter copies before its first call of the switch it copies here, before anybody waits for it. They are the same
ones, so that it needs no more memory. Nothing is done outside of this process: no file, no log line, no call.
"""

from __future__ import annotations

import datetime
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from classad2 import ClassAd
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cedar.commands import Syscall
from cedar.errors import PeerFault
from cedar.stream import CedarStream
from pilot import credentials
from pilot.rpc import Channel
from pilot.settings import Settings
from pilot.switch import make_switch
from procd.client import ProcdClient
from starter import asking
from starter.credential import Keys, ProxyUnusable, fetch_proxy
from starter.messages import STARTER, AccountKnown, Activation
from starter.places import Place
from starter.shadow import Shadow
from starter.work import Work

# So long a starter's process may be kept from its work if the stand-in does not answer.
WITHIN_S = 2.0
NOWHERE = Path("/rehearsal")
SLOT_AD = '[ Name = "slot1_1@rehearsal"; Machine = "rehearsal"; Cpus = 1; Memory = 128; Disk = 4096; ]'
# What most jobs have.
JOB_AD = """[
    ClusterId = 1; ProcId = 0; GlobalJobId = "rehearsal#1.0#1"; Owner = "nobody"; User = "nobody@rehearsal";
    JobUniverse = 5; Cmd = "/rehearsal/job.sh"; Args = "one two"; Environment = "NAME=value"; Iwd = "/rehearsal";
    In = "/dev/null"; Out = "out"; Err = "err"; TransferInput = "input.txt"; TransferOutput = "result";
    ShouldTransferFiles = "YES"; WhenToTransferOutput = "ON_EXIT"; TransferInputSizeMB = 0;
    RequestCpus = 1; RequestMemory = 128; RequestDisk = 4096; JobLeaseDuration = 2400;
    x509userproxy = "/rehearsal/proxy"; x509userproxysubject = "/CN=rehearsal";
    TransferKey = "1#rehearsal"; TransferSocket = "<127.0.0.1:1>";
]"""


def rehearse(settings: Settings) -> None:
    """In a spare starter, and in the spawner before its first fork; takes a few milliseconds.

    Raises:
        Exception: something of it failed, or it was not over within WITHIN_S.
    """
    trio.run(_in_time, settings)


async def _in_time(settings: Settings) -> None:
    with trio.fail_after(WITHIN_S):
        await _rehearse(settings)


async def _rehearse(settings: Settings) -> None:
    ours, its = _stream_pair()
    sock, state = ours.export()
    shadow = Shadow(CedarStream.adopt(sock, state))
    work = _work(settings, shadow, state)
    startd, starters = socket.socketpair()
    with startd:
        async with (
            trio.open_nursery() as nursery,
            Channel(trio.socket.from_stdlib_socket(starters), STARTER) as channel,
        ):
            nursery.start_soon(_stand_in, its)
            nursery.start_soon(shadow.listen)
            await asking.ask(work)
            await channel.send(AccountKnown(0))
            with suppress(ProxyUnusable):  # no authority has signed it
                await fetch_proxy(shadow, work.description, work.trust, work.keys)
            await asking.prepare(work)
            nursery.cancel_scope.cancel()
    await shadow.aclose()
    await its.aclose()


def _work(settings: Settings, shadow: Shadow, state: dict[str, Any]) -> Work:
    activation = Activation(
        slot="slot1_1@rehearsal", claim_id="<127.0.0.1:1>#1#1#...", slot_ad=SLOT_AD, job_ad=JOB_AD, stream_state=state,
        startd_address="<127.0.0.1:1>", cpus=1, memory_mb=128, disk_kb=4096, vacate_max_s=1.0, procd_socket="",
    )  # fmt: skip
    return Work(
        settings=settings, activation=activation, switch=make_switch(settings), procd=ProcdClient(""), shadow=shadow,
        private_dir=NOWHERE, host=activation.slot, place=Place(NOWHERE, NOWHERE, 0, 0), keys=Keys(),
    )  # fmt: skip


def _stream_pair() -> tuple[CedarStream, CedarStream]:
    """Both ends of a connection with a key, as a syscall socket has one."""
    one, other = (CedarStream(trio.SocketStream(trio.socket.from_stdlib_socket(end))) for end in socket.socketpair())
    key = secrets.token_bytes(32)
    one.use_key(key)
    other.use_key(key)
    return one, other


async def _stand_in(stream: CedarStream) -> None:
    """A shadow's side of the calls."""
    with suppress(PeerFault):  # the starter has closed
        while True:
            await _answer(stream, Syscall((await stream.get()).int()))


async def _answer(stream: CedarStream, call: Syscall) -> None:
    match call:
        case Syscall.GET_JOB_INFO:
            await stream.put(0, ClassAd(JOB_AD))
        case Syscall.GET_SEC_SESSION_INFO:
            session = "rehearsal:1", '[Encryption="YES";CryptoMethods="AES";]', secrets.token_hex(32)
            await stream.put(0, *session, *session)
        case Syscall.GET_DELEGATED_PROXY:
            request = await stream.get()
            certificates = credentials.sign_request(_credential(), request.raw(request.int()), not_after=None)
            await stream.put(len(certificates), certificates)
        case _:
            await stream.put(0)


def _credential() -> bytes:
    """Of nobody, good for nothing; with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rehearsal")])
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    hour = datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - hour).not_valid_after(now + hour)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
