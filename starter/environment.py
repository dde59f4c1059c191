"""The whole environment and argv of a job: an allow-list made here, from the job and the machine. Pure.

Nothing of the pilot's environment is in it; the sources, the weakest first: what a login would give, the site's
STARTER_JOB_ENVIRONMENT, the job's own, and what only the starter knows (execute-side reference 4.4, 4.5).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import attrs

from starter.description import (
    CHIRP_CONFIG_NAME,
    CREDENTIALS_NAME,
    JOB_AD_NAME,
    MACHINE_AD_NAME,
    SCRATCH_MARKER,
    WRAPPER_FAILURE_NAME,
    Description,
)

# A job's PATH where it sets none: what a login would give, without anything of the pilot's.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
# Pool accounts often have none that works (nologin), and a batch job has no use for another.
DEFAULT_SHELL = "/bin/sh"


@attrs.frozen(kw_only=True)
class Surroundings:
    """What is known on this node.

    family: for a job at the pilot's own account, so that procd tells it from other jobs there when its starter died.
    threads: names of variables that limit threads, set to ``cpus`` where the job does not set them.
    devices: variables that name the job's devices.
    """

    sandbox: str
    slot: str
    cpus: int
    account: str
    proxy: bool = False
    tokens: bool = False
    chirp: bool = False
    chirp_prefix: str = ""
    wrapped: bool = False
    threads: tuple[str, ...] = ()
    devices: Mapping[str, str] = attrs.field(factory=dict)
    site: Mapping[str, str] = attrs.field(factory=dict)
    family: str | None = None

    def path(self, name: str) -> str:
        """Of a file in the sandbox."""
        return posixpath.join(self.sandbox, name)


def launch_environment(job: Description, around: Surroundings) -> dict[str, str]:
    """The environment of the job and of its owner's sessions."""
    return _compose(job, job.environment, around)


def around_environment(job: Description, own: Mapping[str, str], around: Surroundings) -> dict[str, str]:
    """That of a command before or after the job: its own variables in place of the job's."""
    return _compose(job, own, around)


def _compose(job: Description, own: Mapping[str, str], around: Surroundings) -> dict[str, str]:
    environment = {**_login(around), **around.site}
    environment.update({name: value.replace(SCRATCH_MARKER, around.sandbox) for name, value in own.items()})
    environment.update(_starter(job, around))
    for name in around.threads:
        if not environment.get(name):
            environment[name] = str(around.cpus)
    return environment


def _login(around: Surroundings) -> dict[str, str]:
    """HOME is the sandbox: a pool account's home may be missing, shared with other jobs, or left over."""
    return {
        "PATH": DEFAULT_PATH,
        "SHELL": DEFAULT_SHELL,
        "HOME": around.sandbox,
        "USER": around.account,
        "LOGNAME": around.account,
    }


def _starter(job: Description, around: Surroundings) -> dict[str, str]:
    """What a job can't set otherwise: it describes this node."""
    environment = {
        "BATCH_SYSTEM": "HTCondor",
        "TMPDIR": around.sandbox,
        "TMP": around.sandbox,
        "TEMP": around.sandbox,
        "APPTAINER_CACHEDIR": around.sandbox,
        "SINGULARITY_CACHEDIR": around.sandbox,
        "_CONDOR_SCRATCH_DIR": around.sandbox,
        "_CONDOR_JOB_IWD": around.sandbox,
        "_CONDOR_SLOT": around.slot.partition("@")[0],
        "_CONDOR_JOB_AD": around.path(JOB_AD_NAME),
        "_CONDOR_MACHINE_AD": around.path(MACHINE_AD_NAME),
        "_CONDOR_JOB_PIDS": "",  # as stock: nobody knows the job's pid before the job runs
    }
    environment |= around.devices
    if around.chirp:
        environment["_CONDOR_CHIRP_CONFIG"] = around.path(CHIRP_CONFIG_NAME)
        environment["_CHIRP_DELAYED_UPDATE_PREFIX"] = around.chirp_prefix
    if around.tokens:
        environment["_CONDOR_CREDS"] = around.path(CREDENTIALS_NAME)
    if around.wrapped:
        environment["_CONDOR_WRAPPER_ERROR_FILE"] = around.path(WRAPPER_FAILURE_NAME)
    if around.proxy and job.proxy_name:
        environment["X509_USER_PROXY"] = around.path(job.proxy_name)
    if around.family is not None:
        environment["SAILPLANE_FAMILY"] = around.family
    return environment


def program_path(job: Description, sandbox: str) -> str:
    """Where the executable is: transferred ones lie in the sandbox under their basename."""
    if job.transfer_executable:
        return posixpath.join(sandbox, posixpath.basename(job.program))
    return in_sandbox(job.program, sandbox)


def in_sandbox(program: str, sandbox: str) -> str:
    """A program by its name: an absolute one as it is, another in the sandbox."""
    return program if posixpath.isabs(program) else posixpath.join(sandbox, program)


def expanded(arguments: tuple[str, ...], sandbox: str) -> tuple[str, ...]:
    """``$$(CondorScratchDir)`` came as a marker; only this node knows the path."""
    return tuple(argument.replace(SCRATCH_MARKER, sandbox) for argument in arguments)


def launch_arguments(job: Description, sandbox: str) -> tuple[str, ...]:
    """argv of the job."""
    return (program_path(job, sandbox), *expanded(job.arguments, sandbox))
