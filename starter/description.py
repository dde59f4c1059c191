"""What a job ad asks for, in the form that launching and staging need. Pure: an ad in, values out.

The ad is the user's: every value is checked, and what cannot be honoured is refused in words.
"""

from __future__ import annotations

import posixpath
import signal
from collections.abc import Mapping

import attrs
from classad2 import ClassAd

from cedar.classads import evaluate, get_bool, get_int, get_str
from cedar.errors import PeerFault

# stdout and stderr carry these names in the sandbox and on the wire; the shadow maps them to the user's (wire 4.6).
STDOUT_NAME, STDERR_NAME = "_condor_stdout", "_condor_stderr"
# Written by the starter itself; never sent back.
JOB_AD_NAME, MACHINE_AD_NAME = ".job.ad", ".machine.ad"
NULL_DEVICE = "/dev/null"
# ``$$(CondorScratchDir)`` arrives as this text (wire reference 3.2).
SCRATCH_MARKER = "#CoNdOrScRaTcHdIr#"
# Thread-limiting variables that stock sets to the slot's cpus (execute-side reference, environment).
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "GOMAXPROCS")
# A job's PATH where it sets none: what a login would give, without anything of the pilot's.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


class Unrunnable(Exception):
    """The ad asks for something that cannot be done; the text says what and what to change."""


@attrs.frozen
class Description:
    """One job, as asked for. Names are relative to the sandbox unless absolute."""

    job_id: str
    global_job_id: str
    user: str
    program: str
    transfer_executable: bool
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = attrs.field(repr=False)
    stdin: str | None
    stdout: str
    stderr: str
    output_names: tuple[str, ...] | None
    proxy_name: str | None
    proxy_subject: str
    proxy_lifetime_s: int
    output_on_evict: bool
    kill_signal: int
    vacate_s: float
    core_limit_bytes: int


def describe(ad: ClassAd) -> Description:
    """Read the attributes of wire reference 6.6 and 4.9.

    Raises:
        Unrunnable: a needed attribute is missing or of the wrong kind, or the job wants what this site cannot do.
    """
    try:
        return _describe(ad)
    except (PeerFault, ValueError) as fault:
        raise Unrunnable(f"the job's ad cannot be used: {fault}") from fault


def _describe(ad: ClassAd) -> Description:
    if get_str(ad, "ShouldTransferFiles", "YES").upper() == "NO":
        raise Unrunnable(
            "should_transfer_files is NO, but this slot shares no file system with the submit machine:"
            " set should_transfer_files = YES"
        )
    proxy = get_str(ad, "x509userproxy", "")
    stdout = _stream_name(get_str(ad, "Out", NULL_DEVICE), STDOUT_NAME)
    same = get_str(ad, "Err", NULL_DEVICE) == get_str(ad, "Out", NULL_DEVICE)
    outputs = get_str(ad, "TransferOutput", "") if "TransferOutput" in ad else None
    return Description(
        job_id=f"{get_int(ad, 'ClusterId')}.{get_int(ad, 'ProcId')}",
        global_job_id=get_str(ad, "GlobalJobId", f"{get_int(ad, 'ClusterId')}.{get_int(ad, 'ProcId')}"),
        user=get_str(ad, "User", get_str(ad, "Owner", "")),
        program=get_str(ad, "Cmd"),
        transfer_executable=get_bool(ad, "TransferExecutable", True),
        arguments=arguments_of(ad),
        environment=environment_of(ad),
        stdin=_stdin_name(ad),
        stdout=stdout,
        stderr=stdout if same else _stream_name(get_str(ad, "Err", NULL_DEVICE), STDERR_NAME),
        output_names=None if outputs is None else tuple(n.strip() for n in outputs.split(",") if n.strip()),
        proxy_name=posixpath.basename(proxy) or None,
        proxy_subject=get_str(ad, "x509userproxysubject", ""),
        proxy_lifetime_s=get_int(ad, "DelegateJobGSICredentialsLifetime", DEFAULT_PROXY_LIFETIME_S),
        output_on_evict=get_str(ad, "WhenToTransferOutput", "ON_EXIT").upper() == "ON_EXIT_OR_EVICT",
        kill_signal=_signal_number(ad, "KillSig", 15),
        vacate_s=float(get_int(ad, "JobMaxVacateTime", -1)),
        core_limit_bytes=max(0, get_int(ad, "CoreSize", 0)),
    )


# DELEGATE_JOB_GSI_CREDENTIALS_LIFETIME (wire reference 7.1).
DEFAULT_PROXY_LIFETIME_S = 86_400


def _stream_name(asked: str, own: str) -> str:
    return NULL_DEVICE if asked in ("", NULL_DEVICE) else own


def _stdin_name(ad: ClassAd) -> str | None:
    name = get_str(ad, "In", NULL_DEVICE)
    if name in ("", NULL_DEVICE):
        return None
    return posixpath.basename(name) if get_bool(ad, "TransferIn", True) else name


def _signal_number(ad: ClassAd, name: str, default: int) -> int:
    if name not in ad:
        return default
    if not isinstance(evaluate(ad, name), str):
        number = get_int(ad, name)
        if not 0 < number < signal.NSIG:
            raise ValueError(f"{name} is {number}, which is no signal of this system")
        return number
    word = get_str(ad, name).upper()
    try:
        return int(signal.Signals[word if word.startswith("SIG") else f"SIG{word}"])
    except KeyError:
        raise ValueError(f"{name} is {word!r}, which is no signal of this system") from None


# --- arguments and environment ------------------------------------------------------------------------------------


def arguments_of(ad: ClassAd) -> tuple[str, ...]:
    """``Arguments`` (V2) if present, else ``Args`` (V1: separated by blanks)."""
    if "Arguments" in ad:
        return tuple(split_v2(get_str(ad, "Arguments")))
    return tuple(get_str(ad, "Args", "").split())


def environment_of(ad: ClassAd) -> dict[str, str]:
    """``Environment`` (V2) if present, else ``Env`` (V1: separated by ``;``)."""
    if "Environment" in ad:
        pairs = split_v2(get_str(ad, "Environment"))
    else:
        pairs = [p for p in get_str(ad, "Env", "").split(";") if p]
    environment: dict[str, str] = {}
    for number, pair in enumerate(pairs, start=1):
        name, equals, value = pair.partition("=")
        if not name or not equals:  # never shown: what stands there may be a secret, and the words go into logs
            raise ValueError(f"entry {number} of the environment is not NAME=VALUE")
        environment[name] = value
    return environment


def split_v2(text: str) -> list[str]:
    """HTCondor's V2 quoting: words between white space; ``'`` quotes, doubled inside quotes it stands for itself."""
    words: list[str] = []
    word: list[str] | None = None
    at = 0
    while at < len(text):
        char = text[at]
        if char == "'":
            piece, at = _quoted(text, at + 1)
            word = [*(word or []), piece]
        elif char.isspace():
            if word is not None:
                words.append("".join(word))
            word, at = None, at + 1
        else:
            word, at = [*(word or []), char], at + 1
    if word is not None:
        words.append("".join(word))
    return words


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The quoted piece that starts at ``at`` and the place behind its closing quote."""
    piece: list[str] = []
    while True:
        end = text.find("'", at)
        if end < 0:
            raise ValueError(f"unbalanced quote, opened at or before character {at}")
        piece.append(text[at:end])
        if text[end + 1 : end + 2] != "'":
            return "".join(piece), end + 1
        piece.append("'")
        at = end + 2


# --- what is launched ---------------------------------------------------------------------------------------------


def program_path(job: Description, sandbox: str) -> str:
    """Where the executable is: transferred ones lie in the sandbox under their basename."""
    if job.transfer_executable:
        return posixpath.join(sandbox, posixpath.basename(job.program))
    return job.program if posixpath.isabs(job.program) else posixpath.join(sandbox, job.program)


def launch_environment(
    job: Description,
    *,
    sandbox: str,
    slot: str,
    cpus: int,
    account: str,
    proxy_in_sandbox: bool,
    family: str | None = None,
) -> dict[str, str]:
    """The whole environment of the job: ours, then the job's own, which wins. Nothing of the pilot's is in it.

    HOME is the sandbox: a pool account's home may be missing, shared with other jobs, or left over.
    family: for a job at the pilot's own account, so that procd tells it from other jobs there when its starter died.
    """
    environment = {
        "PATH": DEFAULT_PATH,
        "HOME": sandbox,
        "USER": account,
        "LOGNAME": account,
        "TMPDIR": sandbox,
        "TMP": sandbox,
        "TEMP": sandbox,
        "BATCH_SYSTEM": "HTCondor",
        "_CONDOR_SCRATCH_DIR": sandbox,
        "_CONDOR_JOB_IWD": sandbox,
        "_CONDOR_SLOT": slot.partition("@")[0],
        "_CONDOR_JOB_AD": posixpath.join(sandbox, JOB_AD_NAME),
        "_CONDOR_MACHINE_AD": posixpath.join(sandbox, MACHINE_AD_NAME),
        **dict.fromkeys(THREAD_VARIABLES, str(cpus)),
    }
    environment.update({name: value.replace(SCRATCH_MARKER, sandbox) for name, value in job.environment.items()})
    if family is not None:
        environment["SAILPLANE_FAMILY"] = family
    if proxy_in_sandbox and job.proxy_name:
        environment["X509_USER_PROXY"] = posixpath.join(sandbox, job.proxy_name)
    return environment


def launch_arguments(job: Description, sandbox: str) -> tuple[str, ...]:
    """argv of the job."""
    return (
        program_path(job, sandbox),
        *(argument.replace(SCRATCH_MARKER, sandbox) for argument in job.arguments),
    )
