"""What a spare starter rehearses is what a job begins with, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cedar.commands import Syscall
from cedar.stream import CedarStream
from pilot.configuration import load
from pilot.credentials import CredentialError
from starter import credential, rehearsal

RUN_DIR, CERTIFICATES = "run", "certificates"
# As a job with a proxy makes them until its input is fetched.
CALLS = [
    Syscall.GET_JOB_INFO,
    Syscall.GET_DELEGATED_PROXY,
    Syscall.REGISTER_STARTER_INFO,
    Syscall.GET_SEC_SESSION_INFO,
    Syscall.REGISTER_JOB_INFO,
]


def entries(directory: Path) -> Sequence[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def test_a_rehearsal_goes_through_a_jobs_first_steps_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (RUN_DIR, CERTIFICATES):
        (tmp_path / name).mkdir()
    settings = load(
        None,
        {
            "_CONDOR_SAILPLANE_RUN_DIR": str(tmp_path / RUN_DIR),
            "_CONDOR_SAILPLANE_CERTIFICATES_DIR": str(tmp_path / CERTIFICATES),
        },
    )
    heard: list[Syscall] = []
    answer = rehearsal._answer
    refusals: list[str] = []
    check_proxy = credential.check_proxy

    async def note(stream: CedarStream, call: Syscall) -> None:
        heard.append(call)
        await answer(stream, call)

    def check(*arguments: object) -> credential.Credential:
        try:
            return check_proxy(*arguments)  # type: ignore[arg-type]
        except CredentialError as fault:
            refusals.append(fault.code)
            raise

    monkeypatch.setattr(rehearsal, "_answer", note)
    monkeypatch.setattr(credential, "check_proxy", check)
    descriptors, files = os.listdir("/proc/self/fd"), entries(tmp_path)
    rehearsal.rehearse(settings)
    assert heard == CALLS
    assert refusals == ["untrusted"], "all but the last step of the verification"
    assert os.listdir("/proc/self/fd") == descriptors
    assert entries(tmp_path) == files
