"""What a job ad asks for."""

from __future__ import annotations

import pytest
from classad2 import ClassAd, ExprTree
from hypothesis import given
from hypothesis import strategies as st

from cedar.commands import HoldCode
from starter.arguments import arguments_of, environment_of
from starter.checkpoint import checkpoint_names
from starter.description import Around, Deferral, Unrunnable, describe
from starter.environment import Surroundings, launch_arguments, launch_environment
from starter.launching import missed, nice
from starter.transfer import wanted_names
from starter.updates import one_line

BASE = {"ClusterId": 4, "ProcId": 2, "User": "alice@x", "Cmd": "/home/alice/run.sh", "Out": "out.txt", "Err": "err.txt"}


def ad(**attributes: object) -> ClassAd:
    return ClassAd({**BASE, **attributes})


def test_v2_wins_over_v1() -> None:
    assert arguments_of(ad(Args="old way", Arguments="'new way'")) == ("new way",)
    assert arguments_of(ad(Args="old way")) == ("old", "way")
    assert environment_of(ad(Env="A=1;B=2")) == {"A": "1", "B": "2"}
    assert environment_of(ad(Env="A=1", Environment="'A=x y' B=")) == {"A": "x y", "B": ""}


def test_standard_streams_are_renamed_shared_or_null() -> None:
    job = describe(ad())
    assert (job.stdout, job.stderr, job.stdin) == ("_condor_stdout", "_condor_stderr", None)
    both = describe(ad(Err="out.txt"))
    assert both.stdout == both.stderr == "_condor_stdout"
    assert describe(ad(Out="/dev/null")).stdout == "/dev/null"
    assert describe(ad(In="/home/alice/data/in.txt")).stdin == "in.txt"


def test_outputs_listed_or_not() -> None:
    assert describe(ad()).output_names is None
    assert describe(ad(TransferOutput="")).output_names == ()
    assert describe(ad(TransferOutput="a, d/, b")).output_names == ("a", "d/", "b")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"ShouldTransferFiles": "NO"}, "should_transfer_files"),
        ({"Arguments": "'open"}, "a quote that is opened"),
        ({"Environment": "novalue"}, "NAME=VALUE"),
        ({"KillSig": "SIGNONSENSE"}, "SIGNONSENSE"),
        ({"KillSig": 99}, "KillSig is 99"),
        ({"KillSig": 0}, "KillSig is 0"),
        ({"x509userproxy": "/home/a/.job.ad"}, "x509userproxy is"),
        ({"x509userproxy": "/home/a/.."}, "x509userproxy is"),
    ],
)
def test_what_cannot_be_is_refused_in_words(attributes: dict[str, object], words: str) -> None:
    with pytest.raises(Unrunnable, match=words) as refused:
        describe(ad(**attributes))
    assert refused.value.code == HoldCode.IWD_ERROR


@pytest.mark.parametrize("text", ["A=1 s3cret", "'A=s3cret", "'A=1' 's3cret", "=s3cret"])
def test_a_refusal_never_shows_the_environment(text: str) -> None:
    with pytest.raises(Unrunnable) as refused:
        describe(ad(Environment=text))
    assert "s3cret" not in str(refused.value)


def test_a_missing_command_is_refused() -> None:
    with pytest.raises(Unrunnable, match="Cmd"):
        describe(ClassAd({k: v for k, v in BASE.items() if k != "Cmd"}))


def test_kill_signal_by_number_or_name() -> None:
    assert [describe(ad(KillSig=k)).kill_signal for k in (2, "SIGUSR1", "HUP")] == [2, 10, 1]
    assert describe(ad()).kill_signal == 15


def test_program_is_in_the_sandbox_only_if_it_was_sent() -> None:
    assert launch_arguments(describe(ad(Arguments="1")), "/e/d") == ("/e/d/run.sh", "1")
    assert launch_arguments(describe(ad(TransferExecutable=False, Cmd="/bin/true")), "/e/d") == ("/bin/true",)
    assert launch_arguments(describe(ad(TransferExecutable=False, Cmd="bin/x")), "/e/d") == ("/e/d/bin/x",)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"ContainerImage": "docker://debian"}, "container_image"),
        ({"DockerImage": "debian"}, "docker_image"),
        ({"WantDocker": True}, "universe = docker"),
        ({"WantContainer": True}, "universe = container"),
        ({"SingularityImage": "/cvmfs/x.sif"}, r"\+SingularityImage"),
    ],
)
def test_a_container_is_refused_with_its_own_code(attributes: dict[str, object], words: str) -> None:
    with pytest.raises(Unrunnable, match=words) as refused:
        describe(ad(**attributes))
    assert refused.value.code == HoldCode.INVALID_DOCKER_IMAGE


def test_a_job_that_says_it_wants_no_container_runs() -> None:
    describe(ad(WantDocker=False, WantContainer=False, SingularityImage="", ContainerImage=ExprTree("undefined")))


def test_another_universe_is_refused() -> None:
    with pytest.raises(Unrunnable, match="vanilla"):
        describe(ad(JobUniverse=7))
    describe(ad(JobUniverse=5))


def test_commands_around_the_job() -> None:
    job = describe(
        ad(PreCmd="pre.sh", PreArguments="'a b' c", PreEnvironment="X=1", SuccessPreExitCode=3, PostCmd="/bin/post")
    )
    assert job.pre == Around("pre.sh", ("a b", "c"), {"X": "1"}, 3 << 8)
    assert job.post == Around("/bin/post", (), {}, None)
    old = describe(ad(PostCmd="p", PostArgs="a b", PostEnv="X=1;Y=2", SuccessPostExitBySignal=True))
    assert old.post == Around("p", ("a", "b"), {"X": "1", "Y": "2"}, 15)
    assert (describe(ad()).pre, describe(ad()).post) == (None, None)


@pytest.mark.parametrize(
    ("now_s", "wait_s"), [(900.0, 110.0), (1010.0, 0.0), (1040.0, 0.0), (1040.1, None), (5000.0, None)]
)
def test_a_deferred_job_waits_starts_or_is_too_late(now_s: float, wait_s: float | None) -> None:
    deferral = describe(ad(DeferralTime=1000, DeferralOffset=10, DeferralWindow=30)).deferral
    assert deferral == Deferral(1010.0, 30.0)
    assert deferral.wait_s(now_s) == wait_s


@pytest.mark.parametrize(
    "attributes", [{"DeferralTime": 0}, {"DeferralTime": 5, "DeferralOffset": -(2**62)}, {"DeferralTime": 2**62}]
)
def test_a_deferral_that_is_no_time_is_refused(attributes: dict[str, object]) -> None:
    with pytest.raises(Unrunnable, match="DeferralTime is"):
        describe(ad(**attributes))


NUMBERS = st.sampled_from([0, 1, -1, 64, 65, 300, 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63)])
TEXTS = st.sampled_from(
    ["", "x", "a\nb", " ", "'", '"', "NO", "a=b;c=d", "../x", "/", "http://h/..", "SIGKILL", "\uef80\uefff"]
)
ODD = st.sampled_from(["undefined", "error", "{1, 2}", "[a = 1]", "1/0", 'real("NaN")', 'real("INF")', "KillSig"])
VALUES = st.one_of(NUMBERS, TEXTS, st.booleans(), st.floats(), ODD.map(ExprTree))
# What the starter reads of a job's ad, beside BASE.
READ = [
    "GlobalJobId", "Owner", "TransferExecutable", "Arguments", "Args", "Environment", "Env", "EnvDelim", "In",
    "TransferIn", "TransferOutput", "x509userproxy", "x509userproxysubject", "DelegateJobGSICredentialsLifetime",
    "JobLeaseDuration", "WhenToTransferOutput", "KillSig", "JobMaxVacateTime", "CoreSize", "PreCmd", "PreArguments",
    "PreEnvironment", "SuccessPreExitCode", "SuccessPreExitBySignal", "PostCmd", "DeferralTime", "DeferralOffset",
    "DeferralWindow", "WantIOProxy", "WantRemoteUpdates", "OAuthServicesNeeded", "WantFTOnCheckpoint",
    "SuccessCheckpointExitCode", "TransferCheckpoint", "StreamOut", "StreamErr", "RemoveKillSig", "HoldKillSig",
    "AllowedJobDuration", "AllowedExecuteDuration", "PreserveRelativePaths", "TransferOutputRemaps", "FailureFiles",
    "MaxTransferInputMB", "MaxTransferOutputMB", "TransferPlugins", "OutputDestination", "JobSuccessExitBySignal",
    "JobSuccessExitCode", "JobUniverse",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from([*BASE, *READ]), VALUES, max_size=6))
def test_any_ad_is_a_job_or_refused_in_words(attributes: dict[str, object]) -> None:
    try:
        job = describe(ad(**attributes))
    except Unrunnable as refused:
        one_line(str(refused))
        return
    assert job.global_job_id.isascii()
    launch_arguments(job, "/e/d")
    launch_environment(job, Surroundings(sandbox="/e/d", slot="s", cpus=1, account="u"))
    missed(job.deferral, "node")
    wanted_names(job, failed=True)
    wanted_names(job)
    checkpoint_names(job)
    assert 0 <= nice(ad(**attributes), "JobMaxVacateTime") <= 19


@pytest.mark.parametrize(
    ("attributes", "wishes"),
    [
        ({}, {"delayed"}),
        ({"WantIOProxy": True}, {"files", "updates", "delayed"}),
        ({"WantIOProxy": True, "WantRemoteUpdates": False, "WantDelayedUpdates": False}, {"files"}),
        ({"WantRemoteUpdates": True}, {"updates", "delayed"}),
    ],
)
def test_what_a_job_wants_of_chirp(attributes: dict[str, object], wishes: set[str]) -> None:
    assert describe(ad(**attributes)).chirp == wishes


def test_token_services_are_named_once() -> None:
    assert describe(ad(OAuthServicesNeeded=" box, scitokens*x\tbox,")).services == ("box", "scitokens*x")
    assert describe(ad()).services == ()
