"""Job ads: what a user may say, what only the pool says, what an execution point gets."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedar import classads
from pool import jobad
from pool.jobad import BadJob, PoolFacts, accept
from pool.model import Cluster, Entry, Job, JobId
from tests.pool.conftest import job_ad

FACTS = PoolFacts("host", "dom", "<1.2.3.4:5>", "$CondorVersion: 24.0.1 x $", 300)


def a_job(ad: str = "", **cluster: Any) -> Job:
    held = Cluster(3, 7, "alice", 1000.5, **cluster)
    return Job(JobId(3, 1), held, ad or job_ad(), 0)


def test_a_plain_ad_is_taken_as_it_is() -> None:
    text = job_ad(MyOwn="{1, 2}", Requirements='TARGET.OpSys == "LINUX"')
    assert accept(text) == jobad.Accepted(text, "run.sh")
    assert accept(job_ad(TransferExecutable="false")).executable is None


@pytest.mark.parametrize(
    "name",
    [
        "Owner",
        "user",
        "CLUSTERID",
        "GlobalJobId",
        "QDate",
        "x509UserProxySubject",
        "TransferKey",
        "ClaimId",
        "_condor_x",
    ],
)
def test_what_only_the_pool_says_is_refused(name: str) -> None:
    with pytest.raises(BadJob, match="set by the pool only"):
        accept(job_ad() + f'{name} = "x"\n')


@pytest.mark.parametrize(
    ("ad", "words"),
    [
        (job_ad(Cmd='""'), "executable"),
        (job_ad(Cmd="7"), "Cmd"),
        (job_ad(RequestMemory="banana"), "RequestMemory = banana"),
        (job_ad(RequestCpus="0"), "RequestCpus"),
        (job_ad(RequestDisk='"x"'), "RequestDisk"),
        (job_ad(RequestMemory="-1"), "RequestMemory"),
        (job_ad(RequestGPUs='"one"'), "RequestGPUs"),
        (job_ad(RequestLicenses="-1"), "RequestLicenses"),
        (job_ad(TransferOutput='"../x"'), "transfer_output_files"),
        (job_ad(TransferOutput='"/etc/x"'), "transfer_output_files"),
        (job_ad(TransferOutputRemaps='"a=/etc/x"'), "transfer_output_remaps"),
        (job_ad(TransferOutputRemaps='"a"'), "NAME=NEWNAME"),
        (job_ad(TransferOutput='"http://x/y"'), "URL"),
        (job_ad(KillSig="9"), "KillSig"),
        (job_ad(JobMaxVacateTime='"long"'), "JobMaxVacateTime"),
        (job_ad(A="(" * 5000), "not usable"),
        (job_ad(A="[ a = "), "not usable"),
        ("no equals sign\n", "not usable"),
        (job_ad() + "X = 1\n" * 40000, "KiB"),
        (job_ad() + "".join(f"X{i} = 1\n" for i in range(600)), "attributes"),
    ],
)
def test_what_cannot_be_a_job_is_refused_in_words(ad: str, words: str) -> None:
    with pytest.raises(BadJob, match=words):
        accept(ad)


@given(st.text(max_size=300))
def test_any_text_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(BadJob):
        accept(job_ad() + text)


def test_the_pool_has_the_last_word() -> None:
    ad = jobad.queue_ad(classads.parse_old(job_ad()), a_job(), [Entry("run.sh", 0o755, 5000, 0)], FACTS)
    said = {name: classads.get_str(ad, name) for name in ("Owner", "User", "UidDomain", "GlobalJobId")}
    assert said == {"Owner": "alice", "User": "alice@dom", "UidDomain": "dom", "GlobalJobId": "host#3.1#1000"}
    assert classads.get_int(ad, "QDate") == 1000
    assert classads.get_int(ad, "ImageSize") == 5
    assert classads.get_int(ad, "RequestDisk") == 5
    assert "x509userproxy" not in ad


def test_a_proxys_facts_are_in_the_ad() -> None:
    job = a_job(identity="/CN=Alice", proxy_name="px", proxy_expires_at=99.5)
    ad = jobad.queue_ad(classads.parse_old(job.ad), job, [], FACTS)
    assert classads.get_str(ad, "x509userproxy") == "px"
    assert classads.get_str(ad, "x509userproxysubject") == "/CN=Alice"
    assert classads.get_int(ad, "x509UserProxyExpiration") == 99


@pytest.mark.parametrize(("said", "lease"), [(None, 300), ("60", 60), ("9999", 300), ("1", 20), ('"x"', 300)])
def test_a_lease_is_never_longer_than_the_pools(said: str | None, lease: int) -> None:
    text = job_ad(**({} if said is None else {"JobLeaseDuration": said}))
    ad = jobad.queue_ad(classads.parse_old(text), a_job(), [], FACTS)
    assert classads.get_int(ad, "JobLeaseDuration") == lease
    ad = jobad.queue_ad(classads.parse_old(text), a_job(), [], attrs.evolve(FACTS, lease_s=8))
    assert classads.get_int(ad, "JobLeaseDuration") == 8


def test_the_transfer_key_is_only_in_the_answer_to_get_job_info() -> None:
    queued = jobad.queue_ad(classads.parse_old(job_ad()), a_job(), [], FACTS)
    activated = jobad.activation_ad(queued, FACTS)
    assert "TransferKey" not in activated
    assert classads.get_bool(activated, "_condor_send_activation_failure_ad") is True
    info = jobad.job_info_ad(activated, "secret")
    assert classads.get_str(info, "TransferKey") == "secret"
    assert classads.get_str(info, "TransferSocket") == "<1.2.3.4:5>"
    assert "_condor_send_activation_failure_ad" not in info


def test_the_request_has_what_a_startd_looks_for() -> None:
    queued = jobad.queue_ad(classads.parse_old(job_ad()), a_job(), [], FACTS)
    ad = jobad.request_ad(queued, FACTS, "schedd")
    for name in ("_condor_SEND_LEFTOVERS", "_condor_SECURE_CLAIM_ID", "_condor_SEND_CLAIMED_AD", "StartdSendsAlives"):
        assert classads.get_bool(ad, name) is True
    assert classads.get_int(ad, "_condor_NUM_DYNAMIC_SLOTS") == 1


def test_remaps_and_lists() -> None:
    assert jobad.remaps(" a=b ; c = d/e;") == {"a": "b", "c": "d/e"}
    assert jobad.split_list(" a, b ,,c ") == ["a", "b", "c"]
