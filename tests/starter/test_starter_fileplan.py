"""What a job's ad says about its files."""

from __future__ import annotations

import pytest
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from starter.description import describe
from starter.fileplan import MB, pairs, plan_files, scheme_of, shown
from starter.transfer import is_sent, wanted_names

BASE = {"ClusterId": 1, "ProcId": 0, "User": "a@x", "Cmd": "/bin/x", "Out": "o", "Err": "e", "TransferOutput": "big"}


@pytest.mark.parametrize(
    ("attributes", "status", "failed"),
    [
        ({}, 1 << 8, False),
        ({"WhenToTransferOutput": "ON_EXIT"}, 1 << 8, False),
        # As stock: ON_SUCCESS means something only where success is defined.
        ({"WhenToTransferOutput": "ON_SUCCESS"}, 1 << 8, False),
        ({"WhenToTransferOutput": "ON_SUCCESS", "JobSuccessExitCode": 0}, 0, False),
        ({"WhenToTransferOutput": "ON_SUCCESS", "JobSuccessExitCode": 0}, 1 << 8, True),
        ({"WhenToTransferOutput": "ON_SUCCESS", "JobSuccessExitCode": 0}, 9, True),
        ({"WhenToTransferOutput": "ON_SUCCESS", "JobSuccessExitCode": 3}, 0, True),
        ({"WhenToTransferOutput": "ON_SUCCESS", "JobSuccessExitCode": 3}, 3 << 8, False),
        # As stock: where success is defined it counts, whatever when_to_transfer_output says.
        ({"WhenToTransferOutput": "ON_EXIT", "JobSuccessExitCode": 3}, 0, True),
        ({"JobSuccessExitBySignal": True, "JobSuccessExitSignal": 10}, 10, False),
        ({"JobSuccessExitBySignal": True, "JobSuccessExitSignal": 10}, 10 << 8, True),
    ],
)
def test_only_a_success_brings_all_its_output(attributes: dict[str, object], status: int, failed: bool) -> None:
    job = describe(ClassAd(BASE | attributes))
    assert job.files.failed(status) is failed
    streams = ("_condor_stdout", "_condor_stderr")
    assert wanted_names(job, failed=failed) == (streams if failed else (*streams, "big"))


def test_failure_files_come_with_a_failure() -> None:
    job = describe(ClassAd(BASE | {"JobSuccessExitCode": 0, "FailureFiles": "core, trace.txt"}))
    assert wanted_names(job, failed=True) == ("_condor_stdout", "_condor_stderr", "core", "trace.txt")


def test_limits_plugins_and_urls() -> None:
    plan = plan_files(
        ClassAd(
            {
                "MaxTransferInputMB": 3,
                "MaxTransferOutputMB": 0,
                "TransferPlugins": "TAR = tarball.py; http,HTTPS=tools/fetch",
                "TransferOutputRemaps": "a=b;c=https://host/c;d\\=e = s3://bucket/x;f=https://late/f",
                "OutputDestination": "davs://host/dir",
                "PreserveRelativePaths": True,
            }
        )
    )
    assert (plan.max_input_bytes, plan.max_output_bytes) == (3 * MB, 0)
    assert plan.plugins == {"tar": "tarball.py", "http": "tools/fetch", "https": "tools/fetch"}
    assert plan.urls == {"c": "https://host/c", "d=e": "s3://bucket/x", "f": "https://late/f"}
    assert (plan.destination, plan.preserve_paths) == ("davs://host/dir", True)
    assert plan_files(ClassAd({"MaxTransferInputMB": -1})).max_input_bytes is None


def test_a_url_is_shown_without_its_secrets() -> None:
    url = "https://me:s3cret@host/path?token=s3cret#s3cret"
    assert shown(url) == "https://host/path"
    assert scheme_of(url) == "https"
    assert [scheme_of(text) for text in ("a/b", "://x", "C:/x", "", "https:/x")] == [""] * 5
    assert "s3cret" not in repr(plan_files(ClassAd({"OutputDestination": url, "TransferOutputRemaps": f"a={url}"})))


@given(st.dictionaries(st.text("ab;=\\", min_size=1), st.text("ab;=\\"), max_size=4))
def test_remaps_are_read_as_written(given: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        return "".join(f"\\{char}" for char in text)

    text = ";".join(f"{escaped(name)}={escaped(value)}" for name, value in given.items())
    assert pairs(text, ";") == given


@given(st.text(max_size=60))
def test_remaps_of_any_text_are_read(text: str) -> None:
    pairs(text, ";")
    shown(text)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("out", True), ("d/.job.ad", True), (".job.adx", True), ("_condor_stdout", True), (".job.ad", False),
        (".machine.ad", False), (".update.ad", False), (".chirp.config", False), (".job_wrapper_failure", False),
        (".condor_creds", False), (".condor_creds/box.use", False), ("px.pem", False), ("px.pem.tmp", False),
    ],
)  # fmt: skip
def test_what_the_starter_laid_into_the_sandbox_never_goes_back(name: str, sent: bool) -> None:
    """Also where the job lists all of it: transfer_output_files = ."""
    job = describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x", "x509userproxy": "/tmp/px.pem"}))
    assert is_sent(name, job) == sent
