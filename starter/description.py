"""What a job ad asks for, in the form that launching and staging need. Pure: an ad in, values out.

The ad is the user's: every value is checked, and what cannot be honoured is refused in words.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping

import attrs
from classad2 import ClassAd

from cedar.classads import evaluate, get_bool, get_int, get_str
from cedar.commands import HoldCode
from cedar.errors import PeerFault
from pilot.switch import clean_audit_id
from starter.arguments import arguments_of, environment_of
from starter.fileplan import FilePlan, plan_files

# stdout and stderr carry these names in the sandbox and on the wire; the shadow maps them to the user's (wire 4.6).
STDOUT_NAME, STDERR_NAME = "_condor_stdout", "_condor_stderr"
# Written by the starter itself; never sent back.
JOB_AD_NAME, MACHINE_AD_NAME, UPDATE_AD_NAME = ".job.ad", ".machine.ad", ".update.ad"
CHIRP_CONFIG_NAME, CREDENTIALS_NAME, WRAPPER_FAILURE_NAME = ".chirp.config", ".condor_creds", ".job_wrapper_failure"
OWN_NAMES = frozenset(
    {JOB_AD_NAME, MACHINE_AD_NAME, UPDATE_AD_NAME, CHIRP_CONFIG_NAME, CREDENTIALS_NAME, WRAPPER_FAILURE_NAME}
)
NULL_DEVICE = "/dev/null"
# ``$$(CondorScratchDir)`` arrives as this text (wire reference 3.2).
SCRATCH_MARKER = "#CoNdOrScRaTcHdIr#"


# The longest time that a job may be kept for a shadow that is gone.
MAX_LEASE_S = 7 * 86_400.0
# The last second of the calendar, year 9999.
LAST_TIME_S = 253_402_300_799

# In the order in which they are looked for: what the ad says, and what the user wrote.
_CONTAINERS = (
    ("WantDockerImage", "docker_image"),
    ("DockerImage", "docker_image"),
    ("WantDocker", "universe = docker"),
    ("ContainerImage", "container_image"),
    ("WantContainer", "universe = container"),
    ("SingularityImage", "+SingularityImage"),
)
VANILLA = 5


class Unrunnable(Exception):
    """The ad asks for something that cannot be done; the text says what and what to change. ``code``: of the hold."""

    def __init__(self, text: str, code: HoldCode = HoldCode.IWD_ERROR) -> None:
        super().__init__(text)
        self.code = code


@attrs.frozen
class Around:
    """A command before or after the job, at the job's account. ``success``: the wait status that it must have, None
    where its end does not count."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = attrs.field(repr=False)
    success: int | None


@attrs.frozen
class Deferral:
    """The job is to start at a time of this host's clock, and at most ``window_s`` later."""

    at_s: float
    window_s: float

    def wait_s(self, now_s: float) -> float | None:
        """How long still; None when it is too late."""
        left_s = self.at_s - now_s
        return max(0.0, left_s) if left_s >= -self.window_s else None


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
    lease_s: float
    output_on_evict: bool
    kill_signal: int
    vacate_s: float
    core_limit_bytes: int
    pre: Around | None = None
    post: Around | None = None
    deferral: Deferral | None = None
    chirp: frozenset[str] = frozenset()
    services: tuple[str, ...] = ()
    # of a job that ends to be started again from its checkpoint: the wait status by which it says so, and the files
    checkpoint_status: int | None = None
    checkpoint_names: tuple[str, ...] | None = None
    files: FilePlan = attrs.field(factory=FilePlan)
    # a directory of the sandbox for lists of what is there and of the environment; "" where none are wanted
    manifest_dir: str = ""
    # standard streams that are no files of the sandbox: where they go at the submit side, by "stdout" and "stderr"
    streamed: Mapping[str, str] = attrs.field(factory=dict)
    # where the job wants other signals than kill_sig; 0: it does not
    remove_kill_signal: int = 0
    hold_kill_signal: int = 0
    # wall clock that the job allows itself: from its activation on, and from its start on
    job_limit_s: float | None = None
    execute_limit_s: float | None = None


def describe(ad: ClassAd, *, commands: bool = True) -> Description:
    """Read the attributes of wire reference 6.6 and 4.9. Without ``commands`` those before and after the job are not
    looked at.

    Raises:
        Unrunnable: a needed attribute is missing or of the wrong kind, or the job wants what this site cannot do.
    """
    try:
        return _describe(ad, commands)
    except (PeerFault, ValueError) as fault:
        raise Unrunnable(f"the job's ad cannot be used: {fault}") from fault


def _describe(ad: ClassAd, commands: bool) -> Description:
    _refuse_other_universes(ad)
    if get_str(ad, "ShouldTransferFiles", "YES").upper() == "NO":
        raise Unrunnable(
            "should_transfer_files is NO, but this slot shares no file system with the submit machine:"
            " set should_transfer_files = YES"
        )
    proxy = get_str(ad, "x509userproxy", "")
    if posixpath.basename(proxy) in (*OWN_NAMES, ".", ".."):
        raise ValueError(f"x509userproxy is {proxy[:200]!a}, and no file of a sandbox can be called so")
    streamed = _streamed(ad)
    stdout = NULL_DEVICE if "stdout" in streamed else _stream_name(get_str(ad, "Out", NULL_DEVICE), STDOUT_NAME)
    stderr = NULL_DEVICE if "stderr" in streamed else _stream_name(get_str(ad, "Err", NULL_DEVICE), STDERR_NAME)
    same = get_str(ad, "Err", NULL_DEVICE) == get_str(ad, "Out", NULL_DEVICE)
    checkpoint = _checkpoint_status(ad)
    return Description(
        job_id=f"{get_int(ad, 'ClusterId')}.{get_int(ad, 'ProcId')}",
        global_job_id=clean_audit_id(get_str(ad, "GlobalJobId", f"{get_int(ad, 'ClusterId')}.{get_int(ad, 'ProcId')}")),
        user=get_str(ad, "User", get_str(ad, "Owner", "")),
        program=get_str(ad, "Cmd"),
        transfer_executable=get_bool(ad, "TransferExecutable", True),
        arguments=arguments_of(ad),
        environment=environment_of(ad),
        stdin=_stdin_name(ad),
        stdout=stdout,
        stderr=stdout if same else stderr,
        output_names=_names(ad, "TransferOutput"),
        proxy_name=posixpath.basename(proxy) or None,
        proxy_subject=get_str(ad, "x509userproxysubject", ""),
        proxy_lifetime_s=get_int(ad, "DelegateJobGSICredentialsLifetime", DEFAULT_PROXY_LIFETIME_S),
        lease_s=_lease_s(ad),
        output_on_evict=get_str(ad, "WhenToTransferOutput", "ON_EXIT").upper() == "ON_EXIT_OR_EVICT",
        kill_signal=_signal_number(ad, "KillSig", 15),
        vacate_s=float(get_int(ad, "JobMaxVacateTime", -1)),
        core_limit_bytes=max(0, get_int(ad, "CoreSize", 0)),
        pre=_around(ad, "Pre") if commands else None,
        post=_around(ad, "Post") if commands else None,
        deferral=_deferral(ad),
        chirp=_chirp_wishes(ad),
        services=_services(ad),
        checkpoint_status=checkpoint,
        checkpoint_names=_names(ad, "TransferCheckpoint"),
        files=plan_files(ad),
        manifest_dir=_manifest_dir(ad, posixpath.basename(proxy)),
        streamed=streamed,
        remove_kill_signal=_signal_number(ad, "RemoveKillSig", 0),
        hold_kill_signal=_signal_number(ad, "HoldKillSig", 0),
        job_limit_s=_duration(ad, "AllowedJobDuration"),
        execute_limit_s=_duration(ad, "AllowedExecuteDuration"),
    )


def _manifest_dir(ad: ClassAd, proxy: str) -> str:
    """``manifest``, ``manifest_dir``."""
    name = get_str(ad, "ManifestDir", "")
    if not name and get_bool(ad, "ManifestDesired", False):
        name = f"{get_int(ad, 'ClusterId')}_{get_int(ad, 'ProcId')}_manifest"
    if "/" in name or name in (*OWN_NAMES, ".", "..", proxy or "."):
        raise ValueError(f"manifest_dir is {name[:200]!a}: a plain name is wanted, of no file that is there already")
    return name


def _duration(ad: ClassAd, name: str) -> float | None:
    """As stock has it: what evaluates to no number is no limit."""
    value = evaluate(ad, name) if name in ad else None
    return float(value) if type(value) is int and value >= 0 else None


def _streamed(ad: ClassAd) -> dict[str, str]:
    """``stream_output``, ``stream_error``. Of two streams with one file both are streamed where one is."""
    plan = plan_files(ad)
    paths = {"stdout": get_str(ad, "Out", NULL_DEVICE), "stderr": get_str(ad, "Err", NULL_DEVICE)}
    asked = {"stdout": plan.stream_stdout, "stderr": plan.stream_stderr}
    files = {paths[name] for name, wanted in asked.items() if wanted and paths[name] not in ("", NULL_DEVICE)}
    return {name: path for name, path in paths.items() if path in files}


def _names(ad: ClassAd, attribute: str) -> tuple[str, ...] | None:
    if attribute not in ad:
        return None
    return tuple(name.strip() for name in get_str(ad, attribute, "").split(",") if name.strip())


def _checkpoint_status(ad: ClassAd) -> int | None:
    """``checkpoint_exit_code`` brings WantFTOnCheckpoint with it; without that one stock does nothing either."""
    if not get_bool(ad, "WantFTOnCheckpoint", False):
        return None
    if get_str(ad, "CheckpointDestination", ""):
        raise Unrunnable(
            "the job's checkpoint_destination is a URL, but this slot sends checkpoints to the submit machine only:"
            " leave it out",
            HoldCode.FAILED_TO_CHECKPOINT,
        )
    return _success(ad, "SuccessCheckpointExit")


def _refuse_other_universes(ad: ClassAd) -> None:
    """Containers are not advertised, so nothing that asks for one should come here; what does is told why."""
    for name, words in _CONTAINERS:
        wanted = evaluate(ad, name) if name in ad else None
        if wanted is True or (isinstance(wanted, str) and wanted):
            raise Unrunnable(
                f"the job wants a container ({words}), but this slot runs no containers for jobs: leave it out, or let"
                " the job's own script start one",
                HoldCode.INVALID_DOCKER_IMAGE,
            )
    universe = get_int(ad, "JobUniverse", VANILLA)
    if universe != VANILLA:
        raise Unrunnable(f"the job's universe is number {universe}, but this slot runs vanilla jobs ({VANILLA}) only")


_SEPARATORS = re.compile(r"[,\s]+")


def _services(ad: ClassAd) -> tuple[str, ...]:
    """Names of the token services that the job needs, each once."""
    return tuple(name for name in dict.fromkeys(_SEPARATORS.split(get_str(ad, "OAuthServicesNeeded", ""))) if name)


def _around(ad: ClassAd, which: str) -> Around | None:
    """``+PreCmd``, ``+PreArguments``, ``+PreEnvironment``, ``+SuccessPreExitCode`` (``BySignal``), and so for Post."""
    if f"{which}Cmd" not in ad:
        return None
    program = get_str(ad, f"{which}Cmd")
    if not program:
        raise ValueError(f"{which}Cmd names no program")
    return Around(program, arguments_of(ad, which), environment_of(ad, which), _success(ad, f"Success{which}Exit"))


def _success(ad: ClassAd, stem: str) -> int | None:
    if get_bool(ad, f"{stem}BySignal", False):
        return _signal_number(ad, f"{stem}Signal", 15)
    return (get_int(ad, f"{stem}Code") & 0xFF) << 8 if f"{stem}Code" in ad else None


def _deferral(ad: ClassAd) -> Deferral | None:
    """``deferral_prep_time`` has been the schedd's business: the job was matched that much earlier."""
    if "DeferralTime" not in ad:
        return None
    # The submit side measured how far this host's clock is ahead of its own.
    at_s, ahead_s = get_int(ad, "DeferralTime"), get_int(ad, "DeferralOffset", 0)
    if at_s <= 0 or not 0 <= at_s + ahead_s <= LAST_TIME_S:
        raise ValueError(f"DeferralTime is {at_s} (DeferralOffset {ahead_s}), which is no time")
    return Deferral(float(at_s + ahead_s), float(max(0, get_int(ad, "DeferralWindow", 0))))


def _chirp_wishes(ad: ClassAd) -> frozenset[str]:
    """Stock's rules: WantIOProxy brings files, and updates if nothing else is said; delayed updates come anyway."""
    files = get_bool(ad, "WantIOProxy", False)
    wishes = {
        "files": files,
        "updates": get_bool(ad, "WantRemoteUpdates", files),
        "delayed": get_bool(ad, "WantDelayedUpdates", True),
    }
    return frozenset(name for name, wanted in wishes.items() if wanted)


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


def _lease_s(ad: ClassAd) -> float:
    """JobLeaseDuration; a job without one ends with its shadow."""
    value = evaluate(ad, "JobLeaseDuration")
    return min(max(float(value), 0.0), MAX_LEASE_S) if type(value) in (int, float) and value == value else 0.0
