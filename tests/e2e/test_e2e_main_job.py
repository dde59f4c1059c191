"""The main job, end to end: two users, two accounts, three calls of the switch, nothing left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


def test_two_users_jobs_run_under_two_accounts(jobs: Jobs) -> None:
    said = {role: jobs.output(role, "id -u; id -un; pwd; umask; echo $HOME").split() for role in ("alice", "bob")}
    for role, words in said.items():
        account = jobs.site.accounts[role]
        assert words[:2] == [str(account.uid), account.name]
        assert words[3] == "0022"
        assert words[4] == words[2], "HOME is the sandbox"
    assert len({said["alice"][0], said["bob"][0], str(jobs.site.accounts["pilot"].uid)}) == 3


def test_three_calls_of_the_switch_for_a_job(jobs: Jobs) -> None:
    job = jobs.submit("alice", "exit 0")
    jobs.done(job)
    calls = jobs.calls(job)
    assert [call["result"] for call in calls] == ["mapped"] * 3, calls
    assert {call["uid"] for call in calls} == {jobs.site.accounts["alice"].uid}


def test_files_arguments_and_environment_come_and_go_byte_by_byte(jobs: Jobs) -> None:
    data = bytes(range(256)) * 4096
    jobs.site.put(jobs.user("bob"), "in.bin", data)
    script = 'cat in.bin >copy.bin; : >empty; wc -c <in.bin; printf "%s\\n" "$1" "$2" "$WORD"'
    (job,) = jobs.submit_many(
        "bob",
        [script],
        transfer_input_files="in.bin",
        arguments="\"one 'two words'\"",
        environment="\"WORD='a b'\"",
    )
    jobs.done(job)
    files = jobs.fetch("bob", job)
    assert files["copy.bin"] == data
    assert files["empty"] == b""
    assert files["out"].decode().splitlines() == [str(len(data)), "one", "two words", "a b"]


def test_the_job_has_its_own_proxy_and_not_the_pilots(jobs: Jobs) -> None:
    script = 'echo "$X509_USER_PROXY"; stat -c "%a %u" "$X509_USER_PROXY"; grep -c BEGIN "$X509_USER_PROXY"'
    path, mode, count = jobs.output("alice", script).splitlines()
    assert path.startswith(str(jobs.site.layout.execute))
    assert mode == f"600 {jobs.site.accounts['alice'].uid}"
    assert int(count) >= 3


def test_a_claim_is_used_again_by_the_next_job(lingering: Jobs) -> None:
    for job in lingering.submit_many("alice", ["exit 0"] * 8):
        lingering.done(job)
    log = lingering.log("StartLog")
    assert log.count(": slot slot1_") < log.count("idle -> starting")


def test_the_startd_answers_the_stock_client_and_shows_usage(lingering: Jobs) -> None:
    job = lingering.submit("alice", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 60")
    lingering.wait_for(job, "running")

    def cpu_s() -> float:
        return max(float(ad.get("RemoteUserCpu", 0)) for ad in query_startd(lingering))

    lingering.until("CPU time in the slot's ad", lambda: cpu_s() > 0)
    ads = query_startd(lingering)
    assert {ad["Name"].split("@")[0].split("_")[0] for ad in ads} == {"slot1"}
    assert not any("ClaimId" in ad or "Capability" in ad for ad in ads)
    lingering.remove("alice", job)
    lingering.until_nothing_is_left_of("alice")


_QUERY = """
import sys, json, htcondor2
ads = htcondor2.Collector(sys.argv[1]).query(htcondor2.AdType.Startd)
print(json.dumps([{k: v for k, v in ad.items() if isinstance(v, (str, int, float))} for ad in ads]))
"""


def query_startd(jobs: Jobs) -> list[dict[str, Any]]:
    """Slot ads by the wheel's own client, straight from the startd."""
    address = re.findall(r"ready at (<\S+>)", jobs.log("StartLog"))[-1]
    environment = {"CONDOR_CONFIG": os.devnull, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-W", "ignore", "-c", _QUERY, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return list(json.loads(done.stdout))


def test_rm_stops_a_running_job_by_as_few_calls_as_possible(jobs: Jobs) -> None:
    """Stage-in, launch, clean-up; the signal itself is free over a lingering switch, one call without."""
    job = jobs.submit("bob", "sleep 300")
    jobs.wait_for(job, "running")
    jobs.until("the job's processes", lambda: len(jobs.processes("bob")) > 0)
    jobs.remove("bob", job)
    jobs.until_nothing_is_left_of("bob")
    assert len(jobs.calls(job)) == (3 if jobs.site.linger else 4)


def test_rm_stops_a_job_that_hides(jobs: Jobs) -> None:
    """Ignores TERM, daemonises, leaves its session: nothing of it outlives the removal."""
    script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; (sleep 300 &) ; sleep 300' &) ; sleep 300"
    job = jobs.submit("bob", script)
    jobs.until("the daemonised tree", lambda: len(jobs.processes("bob")) >= 3)
    jobs.remove("bob", job)
    jobs.until_nothing_is_left_of("bob")


def test_what_a_finished_job_left_running_is_stopped(jobs: Jobs) -> None:
    job = jobs.submit("alice", "(setsid sleep 300 >/dev/null 2>&1 &) ; nohup sleep 300 >/dev/null 2>&1 & exit 3")
    assert jobs.done(job)["exit_code"] == 3
    jobs.until_nothing_is_left_of("alice")
