"""A whole site, validated by the pilot's account with the real switch; a site that fails by chance, and one that is
down."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET

import pytest

from demo.site import User
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


def validate(jobs: Jobs, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`sailplane validate` at the pilot's account, with the startd's settings."""
    site, where = jobs.site, jobs.site.layout
    account = site.accounts["pilot"]
    pilot = User("pilot", account, account.uid, account.name, "", where.pilot, where.pilot_proxy)
    argv = site.runtime.argv("sailplane", "--config", str(where.pilot / "startd.conf"), "validate", *options)
    return site.run_as(pilot, argv, variables)


def test_a_good_site_in_all_formats(lingering: Jobs) -> None:
    done = validate(lingering, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["usable"], said["pilot_mapped"]) == (True, True)
    # The site maps the pilot to the account that it has, as sites do that map alike everywhere.
    assert "pilot-keeps-account" in said["degraded"]
    assert {each["check"] for each in said["findings"]} >= {"test 1", "test 2", "descriptors", "path", "interpreter"}
    table = validate(lingering)
    assert table.returncode == 0
    assert "test 2" in table.stdout
    xml = validate(lingering, "--xml", "-")
    assert ET.fromstring(xml.stdout).findtext("result/status") == "OK"


@pytest.mark.slow
def test_lingering_is_told(jobs: Jobs) -> None:
    """The front of our glexec always stays; its root part listens only where it lingers."""
    linger = json.loads(validate(jobs, "--json").stdout)["linger"]
    assert linger == ("control" if jobs.site.linger else "stays")


def test_a_proxy_that_the_site_does_not_take(lingering: Jobs) -> None:
    done = validate(lingering, "--json", _CONDOR_SAILPLANE_PILOT_PROXY="/dev/null")
    assert done.returncode == 1
    failed = [each for each in json.loads(done.stdout)["findings"] if each["status"] == "failed"]
    assert [(each["cause"], each["kind"]) for each in failed] == [("pilot-proxy-refused", "VO_Proxy")]
    xml = validate(lingering, "--xml", "-", _CONDOR_SAILPLANE_PILOT_PROXY="/dev/null")
    assert xml.returncode == 1
    root = ET.fromstring(xml.stdout)
    assert root.findtext("result/status") == "ERROR"
    assert root.findtext("result/metric[@name='failure']") == "VO_Proxy"


def test_pool_and_site_that_do_not_agree(lingering: Jobs) -> None:
    done = validate(lingering, _CONDOR_GLEXEC="NONE")
    assert done.returncode == 1
    assert "GLIDEIN_Glexec_Use is REQUIRED" in done.stderr
    done = validate(lingering, "--json", _CONDOR_GLEXEC="NONE", _CONDOR_GLIDEIN_Glexec_Use="OPTIONAL")
    assert done.returncode == 0
    assert "no-switch" in json.loads(done.stdout)["degraded"]
    done = validate(
        lingering,
        _CONDOR_GLEXEC="NONE",
        _CONDOR_GLIDEIN_Glexec_Use="OPTIONAL",
        _CONDOR_GLIDEIN_Require_Glexec_Use="True",
    )
    assert done.returncode == 1


def test_a_starting_startd_says_what_it_found(lingering: Jobs) -> None:
    log = (lingering.site.layout.pilot / "log" / "StartLog").read_text()
    assert "account that it has" in log
