"""Jobs with a proxy through a stock schedd and shadow: who they run as, what they find, what comes back."""

from __future__ import annotations

import hashlib
import re

import pytest

from tests.interop.stockjobs import StockJobs
from tests.userlog import EXECUTING, TERMINATED, TRANSFER

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

ABOUT = 'id -u; pwd; echo "$X509_USER_PROXY"; stat -c "%a %u" "$X509_USER_PROXY"; grep -c BEGIN "$X509_USER_PROXY"'


def test_two_users_jobs_run_under_two_accounts_with_their_proxies(stock: StockJobs) -> None:
    jobs = {role: stock.one(role, ABOUT) for role in ("alice", "bob")}
    for role, job in jobs.items():
        uid, cwd, proxy, facts, blocks = stock.done(job).splitlines()
        assert uid == str(stock.site.accounts[role].uid)
        assert cwd.startswith(str(stock.site.layout.execute))
        assert proxy == f"{cwd}/proxy"
        assert facts == f"600 {uid}"
        assert int(blocks) >= 4, "the proxy, its key, the user's proxy, the user's certificate"
        calls = stock.switch_calls(job)
        assert [call["result"] for call in calls] == ["mapped"] * 3
    assert stock.ad(jobs["alice"])["x509userproxysubject"] == stock.user("alice").dn


def test_the_stages_stand_in_the_users_log_in_order(stock: StockJobs) -> None:
    job = stock.one("alice", "exit 0")
    stock.done(job)
    stages = [event.text.splitlines()[0].split(" ", 4)[-1] for event in stock.events(job)]
    order = [
        "Started transferring input",
        "Finished transferring input",
        "Job executing",
        "Started transferring output",
        "Finished transferring output",
        "Job terminated",
    ]
    at = [next(i for i, stage in enumerate(stages) if stage.startswith(words)) for words in order]
    assert at == sorted(at), stages
    assert sum(event.number == TRANSFER for event in stock.events(job)) == 4


def test_the_proxy_comes_before_any_file_and_again_as_an_item(stock: StockJobs) -> None:
    data = stock.site.put(stock.user("bob"), "first.in", b"data")
    job = stock.one("bob", "exit 0", transfer_input_files=data.name)
    stock.done(job)
    wanted = re.compile(r"Got request for syscall (\w+)|outgoing file_command is (\d+) for \S*?([^/\s]+)$")
    seen = [
        match[1] or f"item {match[2]} {match[3]}" for line in stock.shadow_says(job) if (match := wanted.search(line))
    ]
    assert seen[:5] == [
        "get_job_info",
        "get_delegated_proxy",
        "register_starter_info",
        "get_sec_session_info",
        "register_job_info",
    ]
    assert [step for step in seen if step.startswith("item")] == [
        "item 4 proxy",
        "item 1 first.in",
        f"item 1 {job.name}.sh",
    ]
    rest = [step for step in seen[5:] if not step.startswith("item") and step != "register_job_info"]
    asked = rest.index("begin_execution")
    assert asked >= 2, "before the input and after it; a shadow that is busy with its transfer has it asked again"
    assert rest == ["request_guidance"] * asked + ["begin_execution", "event_notification", "job_exit"]
    assert any("DEACTIVATE_CLAIM_JOB_DONE" in line for line in stock.shadow_says(job)), "413, by our version"


def test_large_and_empty_files_and_directories_go_both_ways(stock: StockJobs) -> None:
    user = stock.user("alice")
    large = hashlib.sha256(b"sailplane").digest() * 655_360
    stock.site.put(user, "large.in", large)
    stock.site.put(user, "empty.in", b"")
    script = (
        "set -e; cat large.in >large.back; [ ! -s empty.in ]; : >empty.back; mkdir -p tree/below/none;"
        " echo one >tree/a; echo two >tree/below/b; mkdir only; echo three >only/c; echo no >unwanted"
    )
    outputs = "large.back, empty.back, tree, only/"
    job = stock.one("alice", script, transfer_input_files="large.in, empty.in", transfer_output_files=outputs)
    stock.done(job)
    assert (user.home / "large.back").read_bytes() == large
    assert (user.home / "empty.back").read_bytes() == b""
    assert (user.home / "tree/a").read_text() == "one\n"
    assert (user.home / "tree/below/b").read_text() == "two\n"
    assert (user.home / "tree/below/none").is_dir()
    assert (user.home / "c").read_text() == "three\n", "a name with a slash at its end: the contents only"
    assert not (user.home / "unwanted").exists()


def test_an_input_directory_arrives_with_what_is_in_it(stock: StockJobs) -> None:
    user = stock.user("bob")
    stock.pool.tool("mkdir", "-p", "folder/below", user=user)
    stock.site.put(user, "folder/below/x", b"deep")
    job = stock.one("bob", "cat folder/below/x; stat -c %a folder", transfer_input_files="folder")
    assert stock.done(job) == "deep755\n"


def test_without_a_list_what_is_new_or_changed_comes_back(stock: StockJobs) -> None:
    user = stock.user("bob")
    stock.site.put(user, "same.in", b"same")
    stock.site.put(user, "grows.in", b"a")
    job = stock.one(
        "bob",
        "echo b >>grows.in; echo new >fresh; mkdir dir; echo d >dir/d",
        transfer_input_files="same.in, grows.in",
        transfer_output_remaps='"grows.in=grown; fresh=renamed"',
    )
    stock.done(job)
    assert (user.home / "grown").read_text() == "ab\n"
    assert (user.home / "renamed").read_text() == "new\n"
    assert not (user.home / "dir").exists(), "directories come back by name only"
    assert user.proxy.read_bytes().count(b"BEGIN") == 3, "the user's own proxy file is as it was"


def test_exit_codes_and_signals_are_the_jobs_own(stock: StockJobs) -> None:
    script = "case $1 in 4) kill -USR1 $$; sleep 60;; *) exit $(echo 0 1 203 255 | cut -d' ' -f$(($1+1)));; esac"
    jobs = stock.submit("alice", script, count=5, arguments="$(Process)")
    ads = []
    for job in jobs:
        stock.wait(job, TERMINATED)
        ads.append(stock.ad(job))
    assert [ad.get("ExitCode") for ad in ads[:4]] == [0, 1, 203, 255]
    assert [ad["ExitBySignal"] for ad in ads] == [False] * 4 + [True]
    assert ads[4]["ExitSignal"] == 10
    assert all(0 <= ad["ActivationTeardownDuration"] < 60 for ad in ads), "the end of the job was told when it came"


def test_a_cluster_runs_job_after_job_on_one_claim(stock: StockJobs) -> None:
    stock.until_empty()
    before = len(stock.start_log())
    jobs = stock.submit("alice", "echo $_CONDOR_SLOT", count=5, request_cpus="4")
    slots = {stock.done(job) for job in jobs}
    said = stock.start_log()[before:]
    assert len(slots) == 1
    assert said.count(": slot slot1_") == 1, "carved once"
    assert said.count("idle -> starting") == 5
    assert "activation refused" not in said, "each waited for the end of the one before, and was not sent away"


def test_several_jobs_of_a_cluster_run_at_the_same_time(stock: StockJobs) -> None:
    stock.until_empty()
    jobs = stock.submit("bob", "sleep 300", count=3)
    for job in jobs:
        stock.wait(job, EXECUTING)
    ads = {ad["Name"]: ad for ad in stock.slots()}
    assert len(ads) == 4
    assert sum(ad["Cpus"] for ad in ads.values()) == 4
    stock.pool.tool("condor_rm", jobs[0].id.partition(".")[0], user=stock.user("bob"))
    stock.until_empty()
