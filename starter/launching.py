"""The launch step: from a filled sandbox to a running job. What the job gets is put together here, and what its end
means where something ran around it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress

import trio
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate
from cedar.commands import HoldCode
from cedar.errors import PeerFault
from pilot.calls import Running
from starter import ahead, devices, keptfiles, updates
from starter.checkpoint import is_checkpoint
from starter.description import UPDATE_AD_NAME, WRAPPER_FAILURE_NAME, Around, Deferral
from starter.environment import (
    Surroundings,
    around_environment,
    expanded,
    in_sandbox,
    launch_arguments,
    launch_environment,
)
from starter.events import Event, Started, StepFailed
from starter.failures import switch_verdict
from starter.launch import Command, Deadlines, ExecFailed, LaunchSpec, Register, launch
from starter.sandbox import StageFailed
from starter.streams import Stream, StreamBroken, close_all, open_streams
from starter.verdict import Hold, Requeue, Verdict
from starter.work import PROCD_FAULTS, Work

MB = 1024 * 1024
# More than any of these knobs can mean.
MAX_NUMBER = 1 << 40
# JOB_RENICE_INCREMENT that is no number (execute-side reference 4.6).
NICE_WHERE_UNCLEAR, NICEST = 10, 19


async def start_job(work: Work) -> Event:
    """Second call of the switch: the job runs, procd has its family, the shadow is told."""
    late = await _until_its_time(work)
    if late is not None:
        return StepFailed(late, sandbox=True)
    try:
        work.streams, ends = await _open_streams(work)
    except StreamBroken as broken:
        return StepFailed(broken.hold, sandbox=True)
    try:
        spec = launch_spec(work, ends)
        await work.procd.be_ready()
        result = await launch(
            work.context(),
            work.place,
            spec,
            register=registering(work),
            deadlines=Deadlines(),
            take=lambda: ahead.taken(work.ahead, ahead.LAUNCH),
        )
    except StageFailed as fault:
        return StepFailed(switch_verdict(work, fault.outcome, str(fault)), sandbox=True)
    except PROCD_FAULTS as fault:
        text = f"the job's processes could not be tracked on {work.host}: {fault}"
        return StepFailed(Requeue(HoldCode.FAILED_TO_CREATE_PROCESS, updates.one_line(text)), sandbox=True)
    finally:
        close_all(ends)
    if isinstance(result, ExecFailed):
        return StepFailed(_not_started(work, result), sandbox=True)
    work.launched, work.started_at_s = result, trio.current_time()
    work.slot_log.started(work.shadow.peer, work.description.job_id, result.pid)
    keptfiles.close(work.kept)  # of the leg before
    work.kept = keptfiles.trusted(result.files, uid=result.account.uid, device=work.place.device)
    await _tell_begun(work)
    return Started()


async def _tell_begun(work: Work) -> None:
    """Each leg: the shadow reckons its time from it. A later one is not worth waiting for a shadow that is away."""
    if work.legs == 0:
        await work.shadow.begin_execution()
        return
    with suppress(PeerFault):
        await work.shadow.begin_execution(wait=False)


async def _open_streams(work: Work) -> tuple[list[Stream], dict[str, int]]:
    """A leg after a checkpoint goes on where the one before ended; else a stream begins anew, as stock has it."""

    def make(path: str) -> Stream:
        return Stream(work.shadow, path, work.host)

    job = work.description
    return await open_streams(make, job.streamed, append=job.checkpoint_status is not None)


# --- its time ----------------------------------------------------------------------------------------------------


def missed(deferral: Deferral | None, host: str) -> Hold | None:
    """Why a job's time is over, if it is (deferral_time, deferral_window)."""
    if deferral is None or deferral.wait_s(time.time()) is not None:
        return None
    late_s = time.time() - deferral.at_s
    return Hold(
        HoldCode.MISSED_DEFERRED_EXECUTION,
        0,
        f"The job was to start at {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(deferral.at_s))}; on {host} it"
        f" could start only {late_s:.0f} s later, and its deferral_window is {deferral.window_s:.0f} s. Set a later"
        " deferral_time (or a longer deferral_window or deferral_prep_time) and release the job.",
    )


async def _until_its_time(work: Work) -> Hold | None:
    """Wait for it, in the first leg; the hold of a job that came too late."""
    deferral = work.description.deferral
    if deferral is None or work.legs > 0:
        return None
    late = missed(deferral, work.host)
    if late is not None:
        return late
    while True:
        left_s = deferral.wait_s(time.time())
        if not left_s:  # now; or just over, which is not the job's fault
            return None
        await trio.sleep(min(left_s, LOOK_EVERY_S))


# The time is wall clock: a look this often bounds what a clock that jumps can do.
LOOK_EVERY_S = 30.0


# --- what it gets ------------------------------------------------------------------------------------------------


def launch_spec(work: Work, streamed: Mapping[str, int]) -> LaunchSpec:
    """What the wrapper is told."""
    job, settings, around = work.description, work.settings, surroundings(work)
    argv = launch_arguments(job, around.sandbox)
    return LaunchSpec(
        argv=(str(settings.user_job_wrapper), *argv) if around.wrapped else argv,
        environment=launch_environment(job, around),
        cwd=around.sandbox,
        stdin=job.stdin,
        stdout=job.stdout,
        stderr=job.stderr,
        rlimits=_rlimits(work),
        nice=nice(work.job_ad, settings.job_renice_increment),
        cpus=work.activation.cores,
        files=_files(around),
        pre=_command(work, job.pre, around) if work.legs == 0 else None,
        post=_command(work, job.post, around, unless=job.checkpoint_status),
        append=job.checkpoint_status is not None,
        streamed=streamed,
        manifest=job.manifest_dir,
    )


def _files(around: Surroundings) -> tuple[tuple[str, str], ...]:
    kept = ((UPDATE_AD_NAME, "write"),)
    return (*kept, (WRAPPER_FAILURE_NAME, "read")) if around.wrapped else kept


def _command(work: Work, command: Around | None, around: Surroundings, *, unless: int | None = None) -> Command | None:
    if command is None:
        return None
    sandbox = around.sandbox
    return Command(
        argv=(in_sandbox(command.program, sandbox), *expanded(command.arguments, sandbox)),
        environment=around_environment(work.description, command.environment, around),
        success=command.success,
        unless=unless,
    )


def _rlimits(work: Work) -> Mapping[str, tuple[int, int]]:
    core = work.description.core_limit_bytes
    limits = {"core": (core, core)}
    space_mb = _number(work.job_ad, work.settings.starter_rlimit_as)
    if space_mb is not None and space_mb > 0:
        limits["as"] = (space_mb * MB, space_mb * MB)
    if work.switch.name == "userns" and work.bounds.tasks is not None:  # the account is this job's alone
        limits["nproc"] = (work.bounds.tasks, work.bounds.tasks)
    return limits


def nice(job_ad: ClassAd | None, expression: str) -> int:
    """JOB_RENICE_INCREMENT in the job's ad, within its bounds."""
    number = _number(job_ad, expression)
    return NICE_WHERE_UNCLEAR if number is None else max(0, min(number, NICEST))


def _number(job_ad: ClassAd | None, expression: str) -> int | None:
    ad = ClassAd() if job_ad is None else ClassAd(str(job_ad))
    ad["SailplaneNumber"] = ExprTree(expression)
    value = evaluate(ad, "SailplaneNumber")
    # Not isinstance: the library's 'undefined' is a kind of int.
    return int(value) if type(value) in (int, float) and abs(value) < MAX_NUMBER else None


def surroundings(work: Work) -> Surroundings:
    """What the job's environment is made from."""
    assert work.account is not None
    settings = work.settings
    return Surroundings(
        sandbox=str(work.place.path),
        slot=work.activation.slot,
        cpus=work.activation.cpus,
        account=work.account.name,
        proxy=work.proxy_in_sandbox,
        tokens=work.tokens is not None,
        chirp=work.chirp is not None,
        chirp_prefix=settings.chirp_delayed_update_prefix,
        wrapped=settings.user_job_wrapper is not None,
        threads=tuple(settings.starter_num_threads_env_vars.replace(",", " ").split()),
        devices=devices.variables(ClassAd(work.activation.slot_ad), settings),
        site=dict(settings.starter_job_environment),
        family=None if work.switch.isolates else work.family,
    )


def job_environment(work: Work) -> dict[str, str]:
    """What the job runs with, and what its owner's sessions get, too."""
    return launch_environment(work.description, surroundings(work))


def registering(work: Work) -> Register:
    """The callback that gives procd the family before the job may run."""

    async def register(pid: int, start_ticks: int, running: Running) -> None:
        if work.registered:  # an attempt before this one died on its way
            await work.procd.unregister(work.family)
            work.registered = False
        await register_family(
            work,
            work.family,
            (pid, start_ticks),
            running,
            audit_id=work.description.global_job_id,
            memory_limit_kb=work.bounds.memory_kb,
            tasks_limit=work.bounds.tasks,
        )
        work.registered = True  # not before: cancelled in the call, there is no family, and no job has been sent

    return register


async def register_family(
    work: Work,
    family: str,
    root: tuple[int, int],
    running: Running,
    *,
    audit_id: str,
    memory_limit_kb: int | None = None,
    tasks_limit: int | None = None,
) -> None:
    """A family at the job's account, whose first process ``root`` is: pid and start tick. Raises PROCD_FAULTS."""
    pid, start_ticks = root
    await work.procd.register(
        family,
        root_pid=pid,
        root_ticks=start_ticks,
        starter_pid=os.getpid(),
        credential=str(work.credential_path) if work.credential_path else None,
        audit_id=audit_id,
        control_fd=running.control.fileno() if running.control else None,
        uid=work.account.uid if work.account else None,
        memory_limit_kb=memory_limit_kb,
        tasks_limit=tasks_limit,
    )


# --- what went wrong ---------------------------------------------------------------------------------------------


# Where the wrapper was when it gave up: what to say, and the code of the hold.
_STEPS = {
    "stdin": ("its input could not be opened", HoldCode.UNABLE_TO_OPEN_INPUT),
    "stdout": ("its output could not be opened", HoldCode.UNABLE_TO_OPEN_OUTPUT),
    "stderr": ("its error output could not be opened", HoldCode.UNABLE_TO_OPEN_OUTPUT),
    "pre": ("the command before the job (+PreCmd) failed", HoldCode.PRE_SCRIPT_FAILED),
}


def _not_started(work: Work, failure: ExecFailed) -> Verdict:
    """The errno in words for the job's owner; a USER_JOB_WRAPPER that cannot run is the site's trouble."""
    job, wrapper = work.description, work.settings.user_job_wrapper
    if failure.step == "exec" and wrapper is not None:
        text = f"USER_JOB_WRAPPER {wrapper} could not be started on {work.host}: {failure.text}"
        return Requeue(HoldCode.FAILED_TO_CREATE_PROCESS, updates.one_line(text))
    words, code = _STEPS.get(failure.step, (f"'{job.program}' could not be started", HoldCode.FAILED_TO_CREATE_PROCESS))
    reason = failure.text
    if failure.step == "exec" and failure.errno == errno.ENOENT:  # the kernel's word for a missing interpreter, too
        reason += ", or an invalid interpreter in its first line (#!)"
    return Hold(
        code,
        failure.errno,
        updates.one_line(f"Failed to start job {job.job_id} on {work.host} ({failure.step}): {words}: {reason}"),
    )


def verdict_around(work: Work, wait_status: int) -> Verdict | None:
    """What becomes of a job whose end does not decide that: the site's wrapper left a word for us, or the command
    after the job failed. None: its end decides."""
    told = keptfiles.text_of(work.kept.get(WRAPPER_FAILURE_NAME)) if wait_status else ""
    if told:
        text = f"USER_JOB_WRAPPER failed on {work.host}: {told}"
        return Requeue(HoldCode.FAILED_TO_CREATE_PROCESS, updates.one_line(text))
    after, post = work.launched.after if work.launched else None, work.description.post
    if after is None or post is None or is_checkpoint(work.description, wait_status):
        return None
    if after.trouble is not None:
        words, code, number = after.trouble.text, HoldCode.FAILED_TO_CREATE_PROCESS, after.trouble.errno
    elif post.success is not None and after.wait_status != post.success:
        status = after.wait_status or 0
        number = status >> 8 or status & 0x7F
        words = f"it was killed by signal {number}" if status & 0x7F else f"it ended with exit code {number}"
        code = HoldCode.POST_SCRIPT_FAILED
    else:
        return None
    return Hold(
        code,
        number,
        updates.one_line(
            f"The command after job {work.description.job_id} (+PostCmd {post.program}) failed on {work.host}: {words}"
        ),
    )
