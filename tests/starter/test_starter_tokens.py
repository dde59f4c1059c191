"""Tokens: what the shadow may send, and how they are replaced in a sandbox."""

from __future__ import annotations

import base64
import contextlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from classad2 import ClassAd

from cedar.commands import Syscall
from cedar.errors import PeerFault
from starter import tokens
from starter.peek import NotShown
from starter.sandbox import Context, StageFailed
from starter.shadow import Shadow, ShadowRefused
from starter.tokens import Renewal, Tokens, TokensUnusable, fetch, replace
from tests.jobwrapper.farsides import hostile_context, wrapper_context


class Giving:
    """A shadow's tokens, one list after the other; a fault in place of one is raised."""

    def __init__(self, *answers: list[ClassAd] | Exception) -> None:
        self.answers = list(answers)

    async def get_credentials(self, *, wait: bool = True) -> list[ClassAd]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def token(service: str, data: bytes) -> ClassAd:
    return ClassAd({"Service": service, "Data": base64.b64encode(data).decode()})


async def test_tokens_are_named_as_stock_names_them() -> None:
    shadow = cast(Shadow, Giving([token("box", b"1"), token("cms*read", b"2"), token("old_x.use", b"3")]))
    found = await fetch(shadow)
    assert found.files == {"box.use": b"1", "cms_read.use": b"2", "old_x.use": b"3"}
    assert b"1" not in repr(found).encode()


@pytest.mark.parametrize(
    "ad",
    [
        token("../x", b"1"), token("a/b", b"1"), token(".hidden", b"1"), token("", b"1"), token("a\nb", b"1"),
        token("box", b""), token("box", b"x" * 70_000), ClassAd({"Service": "box"}),
        ClassAd({"Service": "box", "Data": "*"}), ClassAd({"Service": 1, "Data": "QQ=="}),
    ],
)  # fmt: skip
async def test_what_is_no_token_is_refused(ad: ClassAd) -> None:
    with pytest.raises(TokensUnusable):
        await fetch(cast(Shadow, Giving([ad])))


async def test_a_shadow_that_has_not_all_tokens() -> None:
    with pytest.raises(TokensUnusable, match="needs"):
        await fetch(cast(Shadow, Giving(ShadowRefused(Syscall.GETCREDS, 0))))


async def test_files_are_replaced_at_one_stroke_and_are_the_jobs_alone(tmp_path: Path) -> None:
    directory = tmp_path / ".condor_creds"
    directory.mkdir(mode=0o700)
    (directory / "box.use").write_bytes(b"old")
    (directory / "box.use.tmp").write_bytes(b"left by an attempt that was killed")
    kept = (directory / "box.use").open("rb")
    await replace(wrapper_context(), str(tmp_path), Tokens({"box.use": b"new", "more.use": b"\0\xff"}), deadline_s=60)
    assert kept.read() == b"old"
    kept.close()
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {"box.use": b"new", "more.use": b"\0\xff"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


async def test_a_directory_that_the_job_has_taken_away_is_made_again(tmp_path: Path) -> None:
    await replace(wrapper_context(), str(tmp_path), Tokens({"box.use": b"new"}), deadline_s=60)
    assert stat.S_IMODE((tmp_path / ".condor_creds").stat().st_mode) == 0o700


async def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".condor_creds").symlink_to("elsewhere")
    with pytest.raises(StageFailed):
        await replace(wrapper_context(), str(tmp_path), Tokens({"box.use": b"new"}), deadline_s=60)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_far_side_that_says_nonsense(tmp_path: Path) -> None:
    far = hostile_context(tmp_path / "far", "hello(); receive(); line.sendall(b'\\xff' * 100)")
    with pytest.raises(StageFailed):
        await replace(far, str(tmp_path), Tokens({"box.use": b"new"}), deadline_s=60)


async def test_only_a_change_costs_a_call_and_a_failed_look_is_made_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[dict[str, bytes]] = []
    turns: list[float] = []
    failures: list[str] = []

    async def replaced(_context: Context, _sandbox: str, changed: Tokens, *, deadline_s: float) -> None:
        put.append(dict(changed.files))

    @contextlib.asynccontextmanager
    async def turn(what: str) -> AsyncIterator[Any]:
        turns.append(trio.current_time())
        if len(turns) == 3:
            raise NotShown("the job has ended")  # it sends its checkpoint just now
        yield None

    monkeypatch.setattr(tokens, "replace", replaced)
    same, box, both = token("a", b"1"), token("box", b"2"), [token("a", b"9"), token("box", b"2")]
    shadow = Giving(
        [same], PeerFault("closed", "gone"), [same, box], [same, box], both, [token("a", b"0")], [token("a", b"7")]
    )
    began_s = trio.current_time()
    renewal = Renewal(cast(Shadow, shadow), "/s", 10, 20, turn, Tokens({"a.use": b"1"}))
    with trio.move_on_after(75):
        await renewal.run(failures.append)
    assert put == [{"box.use": b"2"}, {"a.use": b"9"}, {"a.use": b"7"}]
    assert [at - began_s for at in turns] == [30, 50, 60, 70]
    assert len(failures) == 1
    assert "gone" in failures[0]


async def test_an_interval_of_nothing_means_never() -> None:
    await Renewal(cast(Shadow, Giving()), "/s", 0, 20, cast(Any, None), Tokens({})).run(print)
