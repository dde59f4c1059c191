"""Small decisions within steps: grace, limits, what a stream's refusal means, and which input is refused."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
from classad2 import ClassAd
from trio.testing import MockClock

from cedar.commands import HoldCode
from cedar.filetransfer import Ack, StoreFailed
from pilot.credentials import MAX_PEM_BYTES
from pilot.settings import Settings
from starter import jobinput, joboutput, startdwords, stopping, updates
from starter.credential import Keys
from starter.description import OWN_NAMES, describe
from starter.events import JobEnded, Reported, StagedIn, StepFailed
from starter.failures import transfer_verdict
from starter.fileplan import MB
from starter.plugins import Judged, Order, Plugins
from starter.reporting import report
from starter.sandbox import Inward
from starter.transfer import InputSink, Progress, TransferFailed
from starter.verdict import Exited, Hold, Killed, Requeue, Verdict
from starter.work import Guests, Work
from tests.jobwrapper.farsides import once


def work(**facts: object) -> Work:
    return cast(Work, SimpleNamespace(**facts))


@pytest.mark.parametrize(
    ("asked_s", "left_s", "grace_s"), [(-1.0, None, 600.0), (30.0, None, 30.0), (900.0, None, 600.0), (-1.0, 100, 50.0)]
)
def test_grace_is_agreed_on_and_leaves_half_of_the_proxy_for_the_rest(
    asked_s: float, left_s: float | None, grace_s: float
) -> None:
    credential = None if left_s is None else SimpleNamespace(usable_until=time.time() + left_s)
    busy = work(
        description=SimpleNamespace(vacate_s=asked_s),
        activation=SimpleNamespace(vacate_max_s=600.0),
        credential=credential,
    )
    assert stopping._grace_s(busy) == pytest.approx(grace_s, abs=1)


@pytest.mark.parametrize(
    ("knob_mb", "own_mb", "most_mb"), [(-1, None, 100), (5, None, 5), (5, 7, 7), (-1, 500, 100), (0, None, 0)]
)
def test_input_is_never_more_than_the_slots_disk(knob_mb: int, own_mb: int | None, most_mb: int) -> None:
    own = None if own_mb is None else own_mb * MB
    busy = work(
        settings=attrs.evolve(Settings(), max_transfer_input_mb=knob_mb),
        description=SimpleNamespace(files=SimpleNamespace(max_input_bytes=own)),
        activation=SimpleNamespace(disk_kb=100 * 1024),
    )
    assert jobinput._input_limits(busy).max_bytes == most_mb * MB


@pytest.mark.parametrize(
    ("input_mb", "waited", "ready", "story"),
    [
        (1, False, True, ["stage-in", "launch", "sandbox", "input"]),
        (1, False, False, ["stage-in", "sandbox", "launch", "input"]),
        (1, True, True, ["stage-in", "sandbox", "input", "launch"]),
        (2, False, True, ["stage-in", "sandbox", "input"]),
    ],
)
async def test_the_launchs_call_is_opened_before_a_short_input_unless_input_waited(
    input_mb: int, waited: bool, ready: bool, story: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never before the first call has passed."""
    told: list[str] = []

    class Calls:
        def input_comes_at_once(self) -> bool:
            return not waited

        def open(self, _asking: object, verb: str, **_how: object) -> None:
            if verb not in told:  # one that is open is not opened again
                told.append(verb)

    class Inward:
        account = None

        async def finish(self) -> None: ...

    @asynccontextmanager
    async def stage_in(*_: object, authorised: Callable[[], None], **__: object) -> AsyncIterator[Inward]:
        told.append("stage-in")
        authorised()
        told.append("sandbox")
        prepared.set()
        yield Inward()

    async def fetch_input(_route: object, sink: InputSink, _limits: object) -> None:
        told.append("input")
        sink.begun()

    async def nothing(*_: object) -> None: ...

    for name, fake in (("stage_in", stage_in), ("fetch_input", fetch_input), ("tell_results", nothing)):
        monkeypatch.setattr(jobinput, name, fake)
    ad = ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x", "TransferInputSizeMB": input_mb})
    prepared = trio.Event()
    if ready:
        prepared.set()
    busy = work(
        settings=attrs.evolve(Settings(), enable_chirp=False), description=describe(ad), job_ad=ad, ahead=Calls(),
        context=lambda **_: None, place=None, prepared=prepared, called_off=None, ads={}, keys=Keys(), route=None,
        activation=SimpleNamespace(disk_kb=1024), chirp=None,
    )  # fmt: skip
    assert (await jobinput._fill_once(busy)).event == StagedIn()
    assert told == story


async def test_a_stream_that_was_refused_holds_a_job_that_has_exited() -> None:
    """Its output went nowhere, however well it ended."""

    async def nothing() -> None: ...

    over = SimpleNamespace(wait=nothing)
    hold = Hold(9, 13, "refused")
    busy = work(
        shadow=SimpleNamespace(wait_connected=nothing),
        streams=[
            SimpleNamespace(over=over, broken=None),
            SimpleNamespace(over=over, broken=SimpleNamespace(hold=hold)),
        ],
    )
    assert await joboutput.send_sandbox(busy, Exited(0)) == StepFailed(hold, sandbox=True)


@pytest.mark.parametrize(
    ("changes", "sandbox", "nothing_left"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"verdict": Killed("rm", 0, output=False)}, False, False),
        ({"verdict": Hold(13, 2, "no output")}, False, False),
        ({"registered": True}, False, False),
        ({"guests": Guests(families={"ssh"})}, False, False),
        ({"switch": SimpleNamespace(name="userns")}, False, False),
    ],
)
async def test_a_slot_is_given_up_early_only_where_a_job_that_ended_has_left_nothing(
    changes: dict[str, Any], sandbox: bool, nothing_left: bool
) -> None:
    """At a sub-uid the account goes with the starter."""
    facts = {"registered": False, "guests": Guests(), "switch": SimpleNamespace(name="glexec"), **changes}
    verdict = facts.pop("verdict", Exited(0))
    done = work(usage=None, duration_s=1.0, **facts)
    assert startdwords.ended(done, verdict, JobEnded(0, exact=True), sandbox=sandbox).nothing_left is nothing_left


def test_another_try_is_told_from_a_hold_by_its_subcode() -> None:
    """A stock schedd would hold the job otherwise (wire reference 4.5)."""
    assert updates.error_event(Requeue(6, "x"), "h", "t")["HoldReasonSubCode"] == -1000
    assert updates.error_event(Hold(6, 2, "x"), "h", "t")["HoldReasonSubCode"] == 2
    assert updates.error_event(Requeue(12, "x", -1001), "h", "t")["HoldReasonSubCode"] == -1001


@pytest.mark.parametrize(
    ("retry", "subcode", "verdict"),
    [
        (False, 2, Hold(12, 2, "words")),
        (True, 2, Requeue(12, "words", -1000)),
        (False, -1004, Requeue(12, "words", -1004)),
        (True, -1003, Requeue(12, "words", -1003)),
    ],
)
def test_a_transfer_that_this_node_cannot_do_is_tried_elsewhere(retry: bool, subcode: int, verdict: Verdict) -> None:
    ack = Ack(ok=False, hold_code=0, hold_subcode=subcode, reason="words", retry=retry)
    assert transfer_verdict(TransferFailed(ack, "who"), HoldCode.DOWNLOAD_FILE_ERROR) == verdict


class Nowhere:
    """A far side that must not be given anything."""

    async def file(self, *_: Any) -> None:
        raise AssertionError("it was stored")


def sink() -> InputSink:
    job = describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x", "x509userproxy": "/tmp/px.pem"}))
    return InputSink(cast(Inward, Nowhere()), job, lambda _pem: None, Progress(60), Keys())


@pytest.mark.parametrize("name", sorted(OWN_NAMES))
async def test_input_may_not_take_a_name_of_the_starters(name: str) -> None:
    with pytest.raises(StoreFailed, match="rename it"):
        await sink().file(name, 0o644, 1, once(b"x"))


async def test_a_proxy_that_is_none_fills_no_memory() -> None:
    with pytest.raises(StoreFailed):
        await sink().file("px.pem", 0o600, MAX_PEM_BYTES + 1, once(b"x"))


async def test_every_plugin_is_asked_and_the_first_that_failed_is_the_reason() -> None:
    """The job's owner sees what each said of its URLs."""
    asked: list[str] = []

    async def run_plugin(order: Order) -> Any:
        asked.append(order.program)
        result = f'[ TransferSuccess = {"true" if "good" in order.program else "false"}; TransferError = "no" ]'
        return {"status": 0, "result": result}

    own = Plugins({"a": "/bad", "b": "/good", "c": "/badder"}, "/sandbox", {}, 1.0, "node")
    busy = attrs.evolve(sink(), inward=cast(Inward, SimpleNamespace(run_plugin=run_plugin)), plugins=lambda _proxy: own)
    for scheme in "abc":
        await busy.url(f"{scheme}.txt", f"{scheme}://h/{scheme}.txt")
    with pytest.raises(StoreFailed, match=r"bad on node could not fetch a://h/a\.txt"):
        await busy.finish()
    assert asked == ["/bad", "/good", "/badder"]
    assert [judged.failure is None for judged in busy.judged] == [False, True, False]


async def test_what_plugins_said_is_told_also_of_input_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[ClassAd] = []
    ack = Ack(ok=False, hold_code=12, hold_subcode=256, reason="no")

    @asynccontextmanager
    async def staged(*_: Any, **__: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(account=None)

    async def fetch_input(_route: Any, made: InputSink, _limits: Any) -> None:
        made.judged.append(Judged(ack, {}, (ClassAd({"TransferUrl": "a://h/a"}),), {"a": "no"}))
        raise TransferFailed(ack, "the execute side")

    async def register_job_info(update: ClassAd) -> None:
        told.append(update)

    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr(jobinput, "stage_in", staged)
    monkeypatch.setattr(jobinput, "fetch_input", fetch_input)
    monkeypatch.setattr(jobinput, "_furnish", nothing)
    monkeypatch.setattr(jobinput, "_input_limits", lambda _work: None)
    prepared = trio.Event()
    prepared.set()
    busy = work(
        context=lambda: None,
        place=None,
        settings=SimpleNamespace(sailplane_switch_deadline=1, starter_file_xfer_stall_timeout=1),
        ahead=None,
        prepared=prepared,
        called_off=None,
        description=describe(ClassAd({"ClusterId": 1, "ProcId": 0, "Cmd": "x"})),
        keys=Keys(),
        route=None,
        shadow=SimpleNamespace(register_job_info=register_job_info),
    )
    filled = await jobinput._fill_once(busy)
    assert filled.event == StepFailed(Hold(12, 256, "no"), sandbox=True)
    assert [[dict(ad) for ad in update["InputPluginResultList"]] for update in told] == [[{"TransferUrl": "a://h/a"}]]


@pytest.mark.parametrize("verdict", [Hold(13, 2, "x"), Requeue(13, "x")])
@pytest.mark.parametrize("who", ["the shadow closes", "the startd says so"])
async def test_the_last_word_is_waited_for_until_it_was_heard_and_no_longer(
    verdict: Verdict, who: str, autojump_clock: MockClock
) -> None:
    """Shadows of 24.7 and later keep the connection until the starter has ended."""
    gone, heard = trio.Event(), trio.Event()

    async def log_event(_event: ClassAd) -> None:
        async def later() -> None:
            await trio.sleep(0.1)
            (gone if who == "the shadow closes" else heard).set()

        nursery.start_soon(later)

    busy = work(shadow=SimpleNamespace(log_event=log_event, wait_gone=gone.wait), last_word_heard=heard, host="h")
    busy.stands_still = busy.usage = None  # type: ignore[assignment]
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        assert await report(busy, verdict, None) == Reported()
    assert trio.current_time() - began_s == pytest.approx(0.1)
