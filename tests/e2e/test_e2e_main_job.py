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
    for role in said:
        account = jobs.site.accounts[role]
        assert said[role][:2] == [str(account.uid), account.name]
        assert said[role][3] == "0022"
        assert said[role][4] == said[role][2], "HOME is the sandbox"
    assert len({said["alice"][0], said["bob"][0], str(jobs.site.accounts["pilot"].uid)}) == 3


def test_three_calls_of_the_switch_for_a_job(jobs: Jobs) -> None:
    job = jobs.submit("alice", "exit 0")
    jobs.done("alice", job)
    calls = jobs.calls(job)
    assert [call["result"] for call in calls] == ["mapped"] * 3, calls
    assert {call["uid"] for call in calls} == {jobs.site.accounts["alice"].uid}


def test_input_and_output_files_come_and_go_byte_by_byte(jobs: Jobs) -> None:
    data = bytes(range(256)) * 4096
    jobs.site.put(jobs.user("bob"), "in.bin", data) if not (jobs.user("bob").home / "in.bin").exists() else None
    job = jobs.submit("bob", "cat in.bin >copy.bin; : >empty; wc -c <in.bin", transfer_input_files="in.bin")
    jobs.done("bob", job)
    files = jobs.fetch("bob", job)
    assert files["copy.bin"] == data
    assert files["empty"] == b""
    assert files["out"].strip() == str(len(data)).encode()


def test_arguments_and_environment_reach_the_job(jobs: Jobs) -> None:
    said = jobs.output(
        "alice", 'printf "%s\\n" "$1" "$2" "$WORD"', arguments='"one \'two words\'"', environment="\"WORD='a b'\""
    )
    assert said.splitlines() == ["one", "two words", "a b"]


def test_the_job_has_its_own_proxy_and_not_the_pilots(jobs: Jobs) -> None:
    said = jobs.output("alice", 'echo "$X509_USER_PROXY"; stat -c "%a %u" "$X509_USER_PROXY"; grep -c BEGIN "$X509_USER_PROXY"')
    path, mode, count = said.splitlines()
    assert path.startswith(str(jobs.site.layout.execute))
    assert mode == f"600 {jobs.site.accounts['alice'].uid}"
    assert int(count) >= 3


def test_a_claim_is_used_again_by_the_next_job(lingering: Jobs) -> None:
    ids = [lingering.submit("alice", "exit 0") for _ in range(3)]
    slots = set()
    for job in ids:
        lingering.done("alice", job)
        slots |= {run["slot"] for run in lingering.runs("alice", job)}
    log = (lingering.site.layout.pilot / "log" / "StartLog").read_text()
    assert log.count("slot slot1_") < log.count("idle -> starting"), "fewer slots were carved than jobs were started"
    assert slots


def test_the_startd_answers_the_stock_client_and_shows_usage(lingering: Jobs) -> None:
    job = lingering.submit("alice", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 60")
    lingering.wait_for("alice", job, "running")

    def cpu_s() -> float:
        return max([float(ad.get("RemoteUserCpu", 0)) for ad in query_startd(lingering)])

    lingering.until("CPU time in the slot's ad", lambda: cpu_s() > 0)
    ads = query_startd(lingering)
    assert {ad["Name"].split("@")[0].split("_")[0] for ad in ads} == {"slot1"}
    assert not any("ClaimId" in ad or "Capability" in ad for ad in ads)
    lingering.site.ask(lingering.user("alice"), "rm", job)
    lingering.wait_for("alice", job, "removed")
    lingering.until_gone("alice")


_QUERY = """
import sys, json, htcondor2
ads = htcondor2.Collector(sys.argv[1]).query(htcondor2.AdType.Startd)
print(json.dumps([{k: v for k, v in ad.items() if isinstance(v, (str, int, float))} for ad in ads]))
"""


def query_startd(jobs: Jobs) -> list[dict[str, Any]]:
    """Slot ads by the wheel's own client, straight from the startd."""
    log = (jobs.site.layout.pilot / "log" / "StartLog").read_text()
    address = re.findall(r"ready at (<\S+>)", log)[-1]
    environment = {"CONDOR_CONFIG": os.devnull, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-W", "ignore", "-c", _QUERY, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return list(json.loads(done.stdout))
