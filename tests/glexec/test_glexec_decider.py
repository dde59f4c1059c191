"""The deciding child that is there before there is a question: what becomes of it and of the question when it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from glexec import decision
from glexec.codes import INTERNAL
from glexec.conf import Settings

ANSWER = b"mapped\0/CN=a\x00123\x00123\0\0lcmaps\0"


def settings(timeout_s: int = 30) -> Settings:
    made = Settings()
    made.lcmaps_timeout_s = timeout_s
    return made


def children() -> set[int]:
    """Those of this process, dead ones that nobody has waited for included."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def deciding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, int], None]], decision.Decider]]:
    """A decider whose child does this with its question and its reply; it leaves no child."""
    before, made = children(), []

    def make(act: Callable[[int, int], None]) -> decision.Decider:
        monkeypatch.setattr(decision, "_child", lambda question, reply, chatter: act(question, reply))
        made.append(decision.Decider())
        return made[-1]

    yield make
    for decider in made:
        decider.leave()
    assert children() <= before


def answering(answer: bytes) -> Callable[[int, int], None]:
    def act(question: int, reply: int) -> None:
        decision._read_all(question)
        os.write(reply, answer)
        os._exit(0)

    return act


def test_an_answer_is_taken_before_its_child_has_ended(deciding: Any) -> None:
    def act(question: int, reply: int) -> None:
        decision._read_all(question)
        os.write(reply, ANSWER + decision._END)
        os.closerange(reply - 10, reply + 10)
        time.sleep(60)

    decider = deciding(act)
    mapping = decider.decide(b"pem", settings(), "policy", lambda: None)
    assert (mapping.uid, mapping.gids, mapping.by) == (123, [123], "lcmaps")


@pytest.mark.parametrize("answer", [ANSWER, b"", ANSWER + b"x", b"nonsense" + decision._END])
def test_an_answer_without_its_end_is_none(deciding: Any, answer: bytes) -> None:
    """Cut short, a list of groups would be another list of groups."""
    decider = deciding(answering(answer))
    with pytest.raises(decision.Refusal) as refused:
        decider.decide(b"pem", settings(), "policy", lambda: None)
    assert refused.value.code == INTERNAL


@pytest.mark.parametrize("pem", [b"small", b"x" * (256 << 10)], ids=["small", "larger than a pipe"])
def test_a_child_that_hangs_meets_the_deadline(deciding: Any, pem: bytes) -> None:
    decider = deciding(lambda question, reply: time.sleep(60))
    with pytest.raises(decision.Refusal, match="in time"):
        decider.decide(pem, settings(timeout_s=1), "policy", lambda: None)


def test_a_child_that_is_gone_is_no_denial(deciding: Any) -> None:
    decider = deciding(lambda question, reply: os._exit(0))
    with pytest.raises(decision.Refusal) as refused:
        decider.decide(b"x" * (256 << 10), settings(), "policy", lambda: None)
    assert refused.value.code == INTERNAL


def test_without_a_question_it_leaves(deciding: Any) -> None:
    before = children()
    decider = deciding(lambda question, reply: time.sleep(60))
    assert len(children() - before) == 1
    decider.leave()
    assert children() <= before


def test_a_credential_is_nothing_but_a_credential(deciding: Any) -> None:
    """Whatever is in it: the policy that goes with it is the site's."""

    def act(question: int, reply: int) -> None:
        import marshal

        pem, policy, values = marshal.loads(decision._read_all(question))
        told = b"mapped\0%s\x001\x001\0\0%s\0" % (policy.encode(), values["policy"].encode())
        os.write(reply, (told if pem == b"a\0b\nmapped" else b"") + decision._END)
        os._exit(0)

    wanted = settings()
    wanted.policy = "site"
    mapping = deciding(act).decide(b"a\0b\nmapped", wanted, "the site's", lambda: None)
    assert (mapping.dn, mapping.by) == ("the site's", "site")
