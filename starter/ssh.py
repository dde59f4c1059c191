"""START_SSHD (condor_ssh_to_job): an sshd of one connection at the job's account, in its sandbox (wire reference 8).

Two calls of the switch: one makes keys and configuration, one becomes ``sshd -i`` with the tool's connection as its
standard input and output. Its processes are a family of their own at procd, stopped with the job.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from classad2 import ClassAd

from cedar.classads import get_str, set_str
from cedar.stream import CedarStream
from pilot.calls import Running
from pilot.farside import open_call, text_of
from starter import launching
from starter.entries import Context, StageFailed, check_owner, deadline, raise_if_failed
from starter.launch import ExecFailed, Launched, LaunchSpec, launch
from starter.peek import NotShown
from starter.sshprograms import KEYGEN, SSHD, sftp_server
from starter.work import PROCD_FAULTS, Work

MAX_SHELLS = 16
# For the processes that a session leaves behind.
STOP_WITHIN_S = 30.0
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63}")
_HOST_KEY = re.compile(r"[a-z0-9-]{1,40} [A-Za-z0-9+/=]{16,4096} ?\n")
_CLIENT_KEY = re.compile(r"-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n]{16,8192}-----END [A-Z ]+-----\n")
_DIRECTORY = re.compile(r"\.condor_ssh_to_job_[0-9]{1,4}")


@attrs.frozen
class Prepared:
    """What the far side has made."""

    user: str
    directory: str
    host_key: str
    client_key: str = attrs.field(repr=False)


# -- deciding ----


def shells_of(request: ClassAd) -> list[str]:
    """What the owner would like to run, the best first."""
    return [shell.strip() for shell in get_str(request, "Shell", "").split(",")[:MAX_SHELLS] if shell.strip()]


def prepared_of(answer: Mapping[str, Any], sandbox: str) -> Prepared:
    """The far side's words, checked: the keys go into files of the tool's, the directory into an argument.

    Raises:
        StageFailed: they are not what they should be.
    """
    user, host_key, client_key = answer.get("user"), answer.get("host_key"), answer.get("client_key")
    above, _, name = str(answer.get("directory")).rpartition("/")
    if above != sandbox or not _DIRECTORY.fullmatch(name):
        raise StageFailed("framing", "not a directory in the sandbox")
    texts = ((user, _USER), (host_key, _HOST_KEY), (client_key, _CLIENT_KEY))
    if not all(isinstance(text, str) and form.fullmatch(text) for text, form in texts):
        raise StageFailed("framing", "not a name and two keys")
    return Prepared(str(user), name, str(host_key), str(client_key))


def answer_of(made: Prepared) -> ClassAd:
    """Base64 with line breaks and a final one, or the tool cannot read it (T10)."""
    ad = ClassAd()
    ad["Result"] = True
    ad["RemoteUser"] = made.user
    set_str(ad, "SSHPublicServerKey", base64.encodebytes(made.host_key.encode("ascii")).decode("ascii"))
    set_str(ad, "SSHPrivateClientKey", base64.encodebytes(made.client_key.encode("ascii")).decode("ascii"))
    return ad


# -- acting ----


async def prepare(
    context: Context, work: Work, request: ClassAd, environment: Mapping[str, str], *, deadline_s: float
) -> Prepared:
    """First call.

    Raises:
        NotShown: the account or the host is not fit for it.
        StageFailed: the call failed.
    """
    assert work.launched is not None
    sandbox = str(work.place.path)
    far = await open_call(context, "ssh-setup", deadline_s=deadline_s)
    try:
        check_owner(work.place, far.hello.uid)
        with deadline("set up a session", deadline_s):
            await far.send(
                {
                    "path": sandbox,
                    "keygen": KEYGEN,
                    "sftp": sftp_server(),
                    "environment": dict(environment),
                    "slot": get_str(request, "Name", work.activation.slot),
                    "shells": shells_of(request),
                    "pids": [work.launched.pid],
                }
            )
            answer = await far.receive()
        try:
            raise_if_failed(answer)
        except StageFailed as fault:
            raise NotShown(f"no session on {work.host}: {text_of(fault.text)}") from fault
        return prepared_of(answer, sandbox)
    finally:
        await far.end()


@attrs.define(eq=False)
class Session:
    """One sshd and all that its user starts; ``family`` is its name at procd."""

    work: Work
    family: str
    still_runs: Callable[[], None]
    _launched: Launched | None = None
    _registered: bool = False

    async def open(self, context: Context, made: Prepared, environment: Mapping[str, str], stream: CedarStream) -> None:
        """Answer, and hand the connection over; from here on it speaks ssh.

        Raises:
            StageFailed, PeerFault: it did not come to that; ``close`` is still due.
            NotShown: the job has ended meanwhile.
        """
        await stream.put(answer_of(made))
        sock, _ = stream.export()
        with sock:
            spec = LaunchSpec(
                argv=(SSHD, "-i", "-e", "-f", str(self.work.place.path / made.directory / "sshd_config")),
                environment=environment,
                cwd=str(self.work.place.path),
                stdin=None,
                stdout="/dev/null",
                stderr=str(Path(made.directory, "sshd.log")),
                connection=sock.fileno(),
            )
            try:
                result = await launch(context, self.work.place, spec, register=self._register)
            except PROCD_FAULTS as fault:  # procd is away; or somebody at the account has killed what was to be sshd
                raise StageFailed("procd", f"the session's processes cannot be tracked: {fault}") from fault
        if isinstance(result, ExecFailed):
            raise StageFailed("exec", result.text, errno=result.errno)
        self._launched = result

    async def _register(self, pid: int, start_ticks: int, running: Running) -> None:
        work = self.work
        if self._registered:
            await work.procd.unregister(self.family)
        audit_id = f"{work.description.global_job_id}#ssh"
        await launching.register_family(work, self.family, (pid, start_ticks), running, audit_id=audit_id)
        self._registered = True
        work.guests.families.add(self.family)
        self.still_runs()  # who stops the job from now on finds the family

    async def close(self) -> None:
        """Until sshd has ended, and nothing of its session is left."""
        work, launched = self.work, self._launched
        if launched is not None:
            await launched.wait()
        if self._registered:
            # One that was stopped with the job is forgotten; and a procd that is away stops it with the starter.
            with suppress(*PROCD_FAULTS):
                await work.procd.stop(self.family, urgent=True, deadline_s=STOP_WITHIN_S)
                await work.procd.unregister(self.family)
        work.guests.leave(self.family)
        if launched is not None:
            launched.hang_up()
            launched.running.close()
