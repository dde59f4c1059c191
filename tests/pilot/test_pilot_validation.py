"""Validation: what each answer of a switch and each fact of a node means, and switches of all kinds tried for real."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pilot import findings, validation
from pilot.configuration import from_values
from pilot.findings import (
    Finding,
    Node,
    Target,
    UseRefused,
    Validation,
    decide_switch,
    decide_use,
    judge_node,
    judge_target,
    judge_test,
)
from pilot.outcomes import Broken, Denied, Exited, Misused, Outcome, Signalled, Unavailable
from pilot.settings import SettingsError
from pilot.switch import GlexecSwitch, NoneSwitch
from pilot.validationreport import as_json, as_xml
from tests.jobwrapper.farsides import WRAPPER, open_fds, script

SHELL = os.path.realpath("/bin/sh")
OFF, ON, FAIL = False, True, None


@pytest.mark.parametrize(
    ("use", "tool", "required", "answer"),
    [
        ("NEVER", False, False, OFF), ("NEVER", False, True, FAIL), ("NEVER", True, False, OFF),
        ("NEVER", True, True, FAIL),
        ("OPTIONAL", False, False, OFF), ("OPTIONAL", False, True, FAIL), ("OPTIONAL", True, False, ON),
        ("OPTIONAL", True, True, ON), ("REQUIRED", False, False, FAIL), ("REQUIRED", False, True, FAIL),
        ("REQUIRED", True, False, ON), ("REQUIRED", True, True, ON),
    ],
)  # fmt: skip
def test_the_table_of_glideinwms(use: str, tool: bool, required: bool, answer: bool | None) -> None:
    if answer is None:
        with pytest.raises(UseRefused, match="GLIDEIN_"):
            decide_use(use, tool=tool, required=required)
    else:
        assert decide_use(use.lower(), tool=tool, required=required) is answer


def test_a_glexec_that_only_logs_is_not_enough_where_it_is_required() -> None:
    with pytest.raises(UseRefused, match="isolates nothing"):
        decide_switch("glexec-log-only", "required", tool=True, required=False)
    assert decide_switch("glexec-log-only", "optional", tool=True, required=False) == "glexec-log-only"
    with pytest.raises(UseRefused, match="SAILPLANE_SWITCH is none"):
        decide_switch("none", "required", tool=True, required=True)
    assert decide_switch("userns", "required", tool=False, required=False) == "userns"


HELLO = "uid=77(a) gid=77(a)\nHello World\n"


@pytest.mark.parametrize(
    ("outcome", "printed", "errors", "status", "cause"),
    [
        (Exited(0), HELLO, "", "ok", ""),
        (Exited(0), HELLO, "a warning", "degraded", "noisy-switch"),
        (Exited(0), "Hello World\nbye\n", "", "failed", "switch-garbles"),
        (Exited(0), "", "", "failed", "switch-garbles"),
        (Exited(126), "", "no", "failed", "target-cannot-execute"),
        (Exited(127), "", "no", "failed", "target-cannot-find"),
        (Exited(255), "", "no", "failed", "test-failed"),
        (Signalled(9), "", "", "failed", "test-failed"),
        (Broken("it printed more than 65536 bytes"), "", "", "failed", "test-failed"),
        (Denied("banned"), "", "", "degraded", "pilot-not-mapped"),
        (Unavailable("no answer"), "", "", "failed", "switch-unavailable"),
        (Misused("expired"), "", "", "failed", "pilot-proxy-refused"),
    ],
)
def test_what_the_two_tests_answers_mean(outcome: Outcome, printed: str, errors: str, status: str, cause: str) -> None:
    finding = judge_test("test 1", outcome, printed, errors)
    assert (finding.status, finding.cause) == (status, cause)
    assert finding.passing is (cause == "switch-unavailable")
    assert errors in finding.text
    assert (finding.kind != "") is (status == "failed")


@pytest.mark.parametrize(
    ("target", "of_pilot", "causes"),
    [
        (Target(1001, 1001), False, []),
        (Target(0, 1001), True, ["maps-to-root"]),
        (Target(1001, 0), True, ["maps-to-root"]),
        (Target(55, 55), False, ["not-isolated"]),
        (Target(55, 55), True, ["pilot-keeps-account"]),
        (Target(1001, 1001, closed=("/home/pilot",)), True, ["closed-path"]),
        (Target(1001, 1001, unusable=("/opt/python",)), True, ["unusable-interpreter"]),
        (Target(1001, 1001, descriptor=False), True, ["no-descriptors"]),
    ],
)
def test_what_the_target_account_says(target: Target, of_pilot: bool, causes: list[str]) -> None:
    judged = judge_target(target, switch="glexec", own_uid=55, of_pilot=of_pilot)
    assert [finding.cause for finding in judged if finding.cause] == causes
    for path in (*target.closed, *target.unusable):
        assert any(path in finding.text for finding in judged)


@pytest.mark.parametrize(
    ("node", "cause", "fails_for"),
    [
        (Node(no_new_privs=True), "no-new-privs", {"userns"}),
        (Node(nosuid=("/usr/bin/newuidmap",)), "nosuid", {"userns"}),
        (Node(userns="user namespaces are off"), "no-userns", {"userns"}),
        (Node(subuids="no range"), "no-subuids", {"userns"}),
        (Node(hidepid=True), "hidepid", set()),
        (Node(masked_proc=True), "masked-proc", set()),
    ],
)
def test_what_a_node_takes_away_is_named_and_stops_only_who_needs_it(
    node: Node, cause: str, fails_for: set[str]
) -> None:
    for switch in ("glexec", "userns", "none"):
        (finding,) = [each for each in judge_node(node, switch) if each.cause]
        assert (finding.cause, finding.status) == (cause, "failed" if switch in fails_for else "degraded")
    assert not [each for each in judge_node(Node(), "userns") if each.status != "ok"]


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid,nodev,noexec shared:12 - proc proc rw,hidepid=invisible
24 23 0:30 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
"""


def test_what_mounts_say() -> None:
    assert findings.mount_of(MOUNTS, "/proc")["hidepid"] == "invisible"
    assert findings.mount_of(MOUNTS, "/nowhere") == {}
    assert not findings.masks_proc(MOUNTS)
    assert findings.masks_proc(MOUNTS + "25 23 0:31 / /proc/kcore rw - tmpfs tmpfs rw\n")
    assert findings.parents_of("/a/b") == ["/", "/a", "/a/b"]


# -- reports ----

NASTY = 'a <b> & "c" \x00\x1b[31m\ud800 ]]> \uffff'


def _validation(text: str) -> Validation:
    return Validation(
        "glexec",
        (Finding("test 1", "failed", text, "no-tool", "Config"), Finding("hidepid", "degraded", text, "hidepid")),
        began_at=0.0,
        ended_at=5.0,
        commands=(text,),
    )


@given(st.text() | st.just(NASTY))
def test_the_xml_is_well_formed_and_says_the_same_whatever_a_site_prints(text: str) -> None:
    root = ET.fromstring(as_xml(_validation(text), test_id=text, cwd=text).encode("utf-8", "surrogatepass"))
    assert (root.tag, root.get("version")) == ("OSGTestResult", "4.3.1")
    assert root.findtext("result/status") == "ERROR"
    failure = root.find("result/metric[@name='failure']")
    assert failure is not None
    assert (failure.text, failure.get("uri"), failure.get("ts")) == ("Config", "local", "1970-01-01T00:00:05+00:00")
    assert root.findtext("test/tStart") == "1970-01-01T00:00:00+00:00"


def test_a_report_without_failures_is_ok() -> None:
    good = attrs.evolve(_validation("x"), findings=(Finding("test 1", "ok", "works"),))
    assert ET.fromstring(as_xml(good, test_id="t", cwd="/")).findtext("result/status") == "OK"
    assert as_json(good)["usable"] is True
    bad = as_json(_validation(NASTY))
    assert (bad["usable"], bad["degraded"], bad["findings"][0]["cause"]) == (False, ["hidepid"], "no-tool")


# -- for real ----


@attrs.frozen
class Settings:
    """The knobs that validation reads."""

    execute: Path
    glexec: Path | None = None
    sailplane_pilot_proxy: str | None = "/the/proxy"
    sailplane_switch: str = "glexec"
    sailplane_switch_deadline: float = 20.0
    sailplane_wrapper_dir: str = str(WRAPPER)
    sailplane_wrapper_python: str = "/usr/bin/python3"
    glexec_retries: int = 0
    glexec_retry_delay: float = 0.0


async def examined(tmp_path: Path, text: str, **changes: object) -> Validation:
    """A glexec that is this shell script."""
    execute = tmp_path / "execute"
    execute.mkdir(exist_ok=True)
    settings = Settings(execute, script(tmp_path / "glexec", text))
    settings = attrs.evolve(settings, **changes)
    before = open_fds()
    with trio.fail_after(60):
        found = await validation.examine(settings, GlexecSwitch(str(settings.glexec), settings.sailplane_pilot_proxy))
    assert open_fds() == before
    assert list(execute.iterdir()) == []
    return found


def causes(found: Validation) -> list[str]:
    return [each.cause for each in found.failures]


async def test_a_switch_that_works_is_called_three_times_as_glidein_scripts_do(tmp_path: Path) -> None:
    found = await examined(tmp_path, f'echo "$GLEXEC_CLIENT_CERT $X509_USER_PROXY $@" >> {tmp_path}/calls; exec "$@"')
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == f'/the/proxy /the/proxy {SHELL} -c id && echo "Hello World"'
    assert calls[1].startswith(f"/the/proxy /the/proxy {tmp_path}/execute/.")
    assert calls[1].endswith("-glexec_test2.sh")
    assert calls[2].endswith("__main__.py probe")
    assert len(calls) == 3
    assert found.pilot_mapped
    assert found.linger == "exec"
    by_check = {each.check: each for each in found.findings}
    assert by_check["test 1"].status == by_check["test 2"].status == by_check["descriptors"].status == "ok"
    # At root's own account, as nobody would run it.
    assert by_check["account"].cause == ("maps-to-root" if os.geteuid() == 0 else "pilot-keeps-account")


@pytest.mark.parametrize(
    ("text", "changes", "cause"),
    [
        ("echo >&2 no such luck; exit 202", {}, "switch-unavailable"),
        ("echo >&2 bad proxy; exit 201", {}, "pilot-proxy-refused"),
        ("exit 126", {}, "target-cannot-execute"),
        ("exit 127", {}, "target-cannot-find"),
        ("exit 255", {}, "test-failed"),
        ("kill -9 $$", {}, "test-failed"),
        ("exec sleep 60", {"sailplane_switch_deadline": 0.3}, "switch-unavailable"),
        ("exec yes", {}, "test-failed"),
        ("exec yes >&2", {"sailplane_switch_deadline": 1.0}, "test-failed"),
        # An administrator's wrapper that loses the quotes: what the first test is for.
        ("exec $@", {}, "switch-garbles"),
        # One that can run shells only: what the second is for.
        (f'[ "$1" = {SHELL} ] || exit 126; exec "$@"', {}, "target-cannot-execute"),
        ('"$@"; echo thank you for using glexec', {}, "switch-garbles"),
        ('case "$*" in *probe) exit 127;; esac; exec "$@"', {}, "wrapper-unusable"),
        ('exec "$@"', {"sailplane_wrapper_python": "/nowhere/python3"}, "wrapper-unusable"),
        ('case "$*" in *probe) exec "$@" < /dev/null;; esac; exec "$@"', {}, "wrapper-unusable"),
        ("", {"glexec": None}, "no-tool"),
        ("", {"glexec": Path("/nowhere/glexec")}, "no-tool"),
    ],
)
async def test_a_switch_that_does_not_work_is_named(
    tmp_path: Path, text: str, changes: dict[str, object], cause: str
) -> None:
    found = await examined(tmp_path, text, **changes)
    assert cause in causes(found)
    assert found.passing is (cause == "switch-unavailable")


async def test_what_a_working_switch_prints_on_standard_error_is_shown_and_does_not_stop_it(tmp_path: Path) -> None:
    found = await examined(tmp_path, 'echo >&2 "libfoo: deprecated"; exec "$@"')
    assert "noisy-switch" in found.degraded
    assert any("libfoo: deprecated" in each.text for each in found.findings)
    assert found.pilot_mapped


async def test_a_site_that_does_not_map_pilots_and_a_pilot_without_a_proxy_are_no_failures(tmp_path: Path) -> None:
    found = await examined(tmp_path, "echo >&2 you are nobody; exit 203")
    assert (found.failures, found.pilot_mapped) == ((), False)
    assert "pilot-not-mapped" in found.degraded
    assert "you are nobody" in " ".join(each.text for each in found.findings)
    found = await examined(tmp_path, "exit 99", sailplane_pilot_proxy=None)
    assert (found.failures, found.pilot_mapped) == ((), False)
    assert "no-pilot-proxy" in found.degraded


async def test_a_switch_that_stays_beside_the_job_is_known(tmp_path: Path) -> None:
    found = await examined(tmp_path, '"$@"')
    assert found.linger == "stays"
    assert "switch-stays" in found.degraded


async def test_without_a_switch_that_is_said(tmp_path: Path) -> None:
    found = await validation.examine(Settings(tmp_path, sailplane_switch="none"), NoneSwitch())
    assert found.failures == ()
    assert "no-switch" in found.degraded
    assert "nothing is isolated" in found.words


def test_glexec_is_found_where_glidein_scripts_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OSG_GLEXEC_LOCATION", "")
    command = script(tmp_path / "glexec", "")
    assert from_values({"GLEXEC": "NONE"}, source=None).glexec is None
    assert from_values({"GLEXEC": "auto"}, source=None).glexec in (command, Path("/usr/sbin/glexec"))
    monkeypatch.setenv("OSG_GLEXEC_LOCATION", str(command))
    assert from_values({"GLEXEC": "OSG"}, source=None).glexec == command
    (tmp_path / "sbin").mkdir()
    monkeypatch.setenv("GLITE_LOCATION", str(tmp_path))
    assert from_values({"GLEXEC": "glite"}, source=None).glexec in (None, Path("/opt/glite/sbin/glexec"))
    below = script(tmp_path / "sbin/glexec", "")
    assert from_values({"GLEXEC": "glite"}, source=None).glexec == below
    with pytest.raises(SettingsError, match="NONE"):
        from_values({"GLEXEC": "glexec"}, source=None)
