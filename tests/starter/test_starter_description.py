"""What a job ad asks for."""

from __future__ import annotations

import contextlib

import pytest
from classad2 import ClassAd
from hypothesis import given
from hypothesis import strategies as st

from starter.description import (
    SCRATCH_MARKER,
    Unrunnable,
    arguments_of,
    describe,
    environment_of,
    launch_arguments,
    launch_environment,
    split_v2,
)

BASE = {"ClusterId": 4, "ProcId": 2, "User": "alice@x", "Cmd": "/home/alice/run.sh", "Out": "out.txt", "Err": "err.txt"}


def ad(**attributes: object) -> ClassAd:
    return ClassAd({**BASE, **attributes})


def quote_v2(words: list[str]) -> str:
    return " ".join("'" + word.replace("'", "''") + "'" for word in words)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), max_size=6))
def test_v2_words_come_back_as_they_were_quoted(words: list[str]) -> None:
    assert split_v2(quote_v2(words)) == words


@given(st.text(max_size=60))
def test_v2_of_anything_gives_words_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(word, str) for word in split_v2(text))


def test_v2_refuses_an_open_quote_in_words() -> None:
    with pytest.raises(ValueError, match="unbalanced quote"):
        split_v2("a 'b")


@pytest.mark.parametrize(
    ("text", "words"),
    [("a b", ["a", "b"]), ("'a b' c", ["a b", "c"]), ("x'y z'w", ["xy zw"]), ("''", [""]), ("'it''s'", ["it's"])],
)
def test_v2_examples(text: str, words: list[str]) -> None:
    assert split_v2(text) == words


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
        ({"Arguments": "'open"}, "unbalanced quote"),
        ({"Environment": "novalue"}, "NAME=VALUE"),
        ({"KillSig": "SIGNONSENSE"}, "SIGNONSENSE"),
        ({"KillSig": 99}, "KillSig is 99"),
        ({"KillSig": 0}, "KillSig is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(attributes: dict[str, object], words: str) -> None:
    with pytest.raises(Unrunnable, match=words):
        describe(ad(**attributes))


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


def test_environment_is_ours_then_the_jobs_which_wins() -> None:
    job = describe(ad(Environment=f"'OMP_NUM_THREADS=9' 'WHERE={SCRATCH_MARKER}/x'", x509userproxy="/tmp/x509up_u1"))
    environment = launch_environment(
        job, sandbox="/e/d", slot="slot1_1@n", cpus=2, account="alice", proxy_in_sandbox=True
    )
    assert environment["OMP_NUM_THREADS"] == "9"
    assert environment["MKL_NUM_THREADS"] == "2"
    assert environment["WHERE"] == "/e/d/x"
    assert environment["X509_USER_PROXY"] == "/e/d/x509up_u1"
    assert environment["_CONDOR_SLOT"] == "slot1_1"
    assert environment["HOME"] == environment["TMPDIR"] == environment["_CONDOR_SCRATCH_DIR"] == "/e/d"


def test_a_job_at_the_pilots_own_account_carries_its_familys_name() -> None:
    job = describe(ad(Environment="SAILPLANE_FAMILY=other"))
    given = {"sandbox": "/e/d", "slot": "s", "cpus": 1, "account": "p", "proxy_in_sandbox": False}
    assert launch_environment(job, **given, family="act-7")["SAILPLANE_FAMILY"] == "act-7"
    assert "SAILPLANE_FAMILY" not in launch_environment(describe(ad()), **given)


def test_program_is_in_the_sandbox_only_if_it_was_sent() -> None:
    assert launch_arguments(describe(ad(Arguments="1")), "/e/d") == ("/e/d/run.sh", "1")
    assert launch_arguments(describe(ad(TransferExecutable=False, Cmd="/bin/true")), "/e/d") == ("/bin/true",)
    assert launch_arguments(describe(ad(TransferExecutable=False, Cmd="bin/x")), "/e/d") == ("/e/d/bin/x",)
