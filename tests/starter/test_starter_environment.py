"""What a job's environment is made of, and who wins."""

from __future__ import annotations

import os

import attrs
import pytest
from classad2 import ClassAd

from starter.description import SCRATCH_MARKER, Description, describe
from starter.environment import Surroundings, around_environment, launch_arguments, launch_environment

BASE = {"ClusterId": 4, "ProcId": 2, "User": "alice@x", "Cmd": "run.sh", "Out": "out.txt", "Err": "err.txt"}
AROUND = Surroundings(sandbox="/e/d", slot="slot1_1@n", cpus=2, account="alice", threads=("OMP_NUM_THREADS", "GO"))


def job(environment: str = "", **attributes: object) -> Description:
    return describe(ClassAd({**BASE, "Environment": environment, **attributes}))


def test_the_whole_of_it() -> None:
    assert launch_environment(job("MINE=1"), AROUND) == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "SHELL": "/bin/sh",
        "USER": "alice",
        "LOGNAME": "alice",
        "MINE": "1",
        "BATCH_SYSTEM": "HTCondor",
        "OMP_NUM_THREADS": "2",
        "GO": "2",
        "_CONDOR_SLOT": "slot1_1",
        "_CONDOR_JOB_PIDS": "",
        "_CONDOR_JOB_AD": "/e/d/.job.ad",
        "_CONDOR_MACHINE_AD": "/e/d/.machine.ad",
        **dict.fromkeys(
            ("HOME", "TMPDIR", "TMP", "TEMP", "_CONDOR_SCRATCH_DIR", "_CONDOR_JOB_IWD", "APPTAINER_CACHEDIR",
             "SINGULARITY_CACHEDIR"),
            "/e/d",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "MALLOC_CHECK_", "PYTHON_EGG_CACHE", "PYTHONPATH", "TMPDIR", "GLEXEC_ENV",
             "X509_USER_PROXY", "X509_USER_CERT", "CONDOR_CONFIG", "_CONDOR_ANCESTOR_1", "KRB5CCNAME", "SSH_AUTH_SOCK"],
)  # fmt: skip
def test_nothing_of_the_pilots_environment_is_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "the-pilots")
    assert "the-pilots" not in launch_environment(job(), AROUND).values()
    assert "the-pilots" not in around_environment(job(), {}, AROUND).values()
    assert os.environ[name] == "the-pilots"


def test_the_site_is_weaker_than_the_job_and_the_starter_is_stronger() -> None:
    site = attrs.evolve(AROUND, site={"PATH": "/site", "HOME": "/site", "A": "site", "TMPDIR": "/site"})
    found = launch_environment(job("HOME=/job TMPDIR=/job _CONDOR_SLOT=job BATCH_SYSTEM=job"), site)
    assert (found["PATH"], found["HOME"], found["A"]) == ("/site", "/job", "site")
    assert (found["TMPDIR"], found["_CONDOR_SLOT"], found["BATCH_SYSTEM"]) == ("/e/d", "slot1_1", "HTCondor")


def test_a_jobs_own_thread_limits_win_and_empty_ones_do_not() -> None:
    found = launch_environment(job("OMP_NUM_THREADS=9 GO="), AROUND)
    assert (found["OMP_NUM_THREADS"], found["GO"]) == ("9", "2")


def test_the_scratch_marker_is_the_sandbox_in_values_and_arguments() -> None:
    marked = job(f"'W={SCRATCH_MARKER}/x:{SCRATCH_MARKER}'", Arguments=f"-o {SCRATCH_MARKER}/y")
    assert launch_environment(marked, AROUND)["W"] == "/e/d/x:/e/d"
    assert launch_arguments(marked, "/e/d") == ("/e/d/run.sh", "-o", "/e/d/y")


def test_what_is_there_is_named() -> None:
    around = attrs.evolve(
        AROUND, proxy=True, tokens=True, chirp=True, chirp_prefix="Chirp*", wrapped=True,
        devices={"_CONDOR_AssignedGPUs": "G-1"},
        family="act-7",
    )  # fmt: skip
    found = launch_environment(job("X509_USER_PROXY=/mine SAILPLANE_FAMILY=x", x509userproxy="/tmp/x509up_u1"), around)
    assert found["X509_USER_PROXY"] == "/e/d/x509up_u1"
    assert found["_CONDOR_CREDS"] == "/e/d/.condor_creds"
    assert found["_CONDOR_CHIRP_CONFIG"] == "/e/d/.chirp.config"
    assert found["_CHIRP_DELAYED_UPDATE_PREFIX"] == "Chirp*"
    assert found["_CONDOR_WRAPPER_ERROR_FILE"] == "/e/d/.job_wrapper_failure"
    assert found["_CONDOR_AssignedGPUs"] == "G-1"
    assert found["SAILPLANE_FAMILY"] == "act-7"


def test_a_command_around_the_job_has_its_own_variables_instead_of_the_jobs() -> None:
    found = around_environment(job("JOBS=1"), {"ITS": f"{SCRATCH_MARKER}/z"}, AROUND)
    assert found["ITS"] == "/e/d/z"
    assert "JOBS" not in found
    assert found["HOME"] == "/e/d"
