"""glideinWMS's own condor_startup.sh starts a stock master with our startd in place of condor_startd.

Needs a checkout of glideinWMS besides the stock HTCondor: SAILPLANE_GLIDEINWMS names it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo import layout
from demo.daemons import switched
from demo.leftovers import VARIABLE as OF_SITE
from demo.leftovers import processes_in
from demo.site import Site
from tests.interop.stockjobs import StockJobs
from tests.interop.stockpool import VARIABLE, open_pool
from tests.interop.test_interop_master import program

CHECKOUT = "SAILPLANE_GLIDEINWMS"
SCRIPTS = Path("creation/web_base")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not Path(os.environ.get(CHECKOUT, "/nowhere"), SCRIPTS, "condor_startup.sh").is_file(),
        reason=f"no glideinWMS: set {CHECKOUT} to a checkout of it",
    ),
]
# What the factory, the frontend and the steps before condor_startup.sh leave there (its own words for each).
_GLIDEIN_CONFIG = """\
ADD_CONFIG_LINE_SOURCE {main}/add_config_line.source
ERROR_GEN_PATH {here}/error_gen
LOGGING_UTILS_SOURCE {main}/logging_utils.source
GLIDEIN_STARTUP_PID {pid}
DEBUG_MODE 0
GLIDEIN_ADVERTISE_ONLY 0
GLIDEIN_WORK_DIR {main}
DESCRIPTION_FILE description.cfg
WRAPPER_LIST {here}/wrapper_list.lst
CONDOR_VARS_FILE {main}/condor_vars.lst
CONDOR_DIR {condor}
GLIDEIN_Collector {collector}
GLIDEIN_Master_Collector {collector}
GLIDEIN_Factory factory
GLIDEIN_Name glidein
GLIDEIN_CredentialIdentifier 12345
GLIDEIN_Signature abc
GLIDEIN_Entry_Name entry
GLIDEIN_Entry_Signature def
CONDORG_CLUSTER 17
CONDORG_SUBCLUSTER 0
CONDORG_SCHEDD schedd@factory
GLIDEIN_LOCAL_TMP_DIR {here}/tmp
TMP_DIR {here}/tmp
GLIDECLIENT_Name frontend
GLIDECLIENT_Group main
GLIDEIN_Max_Walltime 172800
GLIDEIN_Job_Max_Time 86400
GLIDEIN_BLACKHOLE_NUMJOBS 50
GLIDEIN_BLACKHOLE_RATE 0.05
SLOTS_LAYOUT {slots}
GLIDEIN_CPUS 2
GLIDEIN_CONDOR_TOKEN {here}/cred.d/idtokens/startd.token
"""
_DESCRIPTION = """\
condor_config \tcondor_config
condor_config_main_include \tcondor_config.dedicated_starter.include
condor_config_monitor_include \tcondor_config.monitor.include
"""
_ON_LOOPBACK = """\
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = {domain}
NETWORK_HOSTNAME = glidein.{domain}
TRUST_DOMAIN = {domain}
UPDATE_INTERVAL = 5
"""


@attrs.define(eq=False)
class Glidein:
    """One run of the script."""

    jobs: StockJobs
    here: Path
    slots: str
    process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """The directory as the script finds it; everything is the pilot's."""
        site, main = self.jobs.site, self.here / "main"
        assert site.installed is not None
        shutil.copytree(Path(os.environ[CHECKOUT]) / SCRIPTS, main, symlinks=True)
        for name in ("tmp", "condor_config.d", "cred.d/idtokens", "condor/sbin"):
            (self.here / name).mkdir(parents=True)
        prefix = Path(os.environ[VARIABLE])
        for name in ("bin", "lib", "libexec"):
            (self.here / "condor" / name).symlink_to(prefix / name)
        for tool in (prefix / "sbin").iterdir():
            target = program(site) if tool.name == "condor_startd" else tool
            (self.here / "condor" / "sbin" / tool.name).symlink_to(target)
        (main / "description.cfg").write_text(_DESCRIPTION)
        (self.here / "wrapper_list.lst").touch()
        (self.here / "error_gen").write_text('#!/bin/sh\necho "$*" >> error_gen.out\n')
        (self.here / "error_gen").chmod(0o755)
        ours = layout.startd_values(site.layout, collector="", switch=site.installed.front)
        names = ("SAILPLANE_SWITCH", "GLEXEC", "EXECUTE", "SAILPLANE_PILOT_PROXY", "SAILPLANE_CERTIFICATES_DIR")
        lines = [f"{name} = {ours[name]}\n" for name in names if name in ours]
        (self.here / "condor_config.d" / "50-site.conf").write_text(
            _ON_LOOPBACK.format(domain=layout.DOMAIN) + "".join(lines)
        )
        token = self.here / "cred.d" / "idtokens" / "startd.token"
        token.touch(mode=0o600)
        token.write_bytes(self.jobs.pool.pilot_token())
        (self.here / "glidein_config").write_text(
            _GLIDEIN_CONFIG.format(
                main=main,
                here=self.here,
                pid=os.getpid(),
                condor=self.here / "condor",
                slots=self.slots,
                collector=f"127.0.0.1:{self.jobs.pool.port}",
            )
        )
        owner = site.accounts["pilot"]
        for path in (self.here, *self.here.rglob("*")):
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)

    def start(self) -> None:
        site = self.jobs.site
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.here), "LANG": "C.UTF-8", OF_SITE: str(site.layout.root),
        }  # fmt: skip
        with (self.here / "startup.out").open("wb") as output:
            self.process = subprocess.Popen(
                ["/bin/bash", "main/condor_startup.sh", "glidein_config"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.here, env=environment,
                start_new_session=True, umask=0o022, **switched(site.accounts["pilot"]),
            )  # fmt: skip
        self.jobs.until(lambda: self.ads() or self._alive(), "the glidein's slots", deadline_s=120.0)

    def _alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"condor_startup.sh ended:\n{self.said()}"

    def ads(self) -> list[dict[str, object]]:
        return self.jobs.slots()

    def said(self) -> str:
        logs = [path for name in ("StartdLog", "StartLog", "MasterLog") for path in (self.here / "log").glob(name)]
        return "\n".join(path.read_text(errors="replace")[-6000:] for path in (self.here / "startup.out", *logs))

    def end(self) -> int:
        """SIGTERM to the script, as glidein_startup.sh sends it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module", params=["partitionable", "fixed"])
def glidein(request: pytest.FixtureRequest) -> Iterator[Glidein]:
    """A glidein in a stock pool."""
    with Site.open("test", linger=True) as site:
        with open_pool(site, Path(os.environ[VARIABLE])) as pool:
            running = Glidein(StockJobs(site, pool), site.layout.pilot / "glidein", request.param)
            running.prepare()
            running.start()
            yield running
            print(running.said())  # shown if something failed
            if running.process is not None and running.process.poll() is None:
                running.end()
        running.jobs.until(lambda: not processes_in(site.layout.root) or None, "everything to be gone")
        site.stop()
        assert site.left == []


def test_jobs_run_in_a_glidein_under_their_users_accounts(glidein: Glidein) -> None:
    jobs = glidein.jobs
    for role in ("alice", "bob"):
        job = jobs.one(role, "id -u; echo $GLIDEIN_Entry_Name $GLIDEIN_CPUS")
        assert jobs.done(job).split() == [str(jobs.user(role).uid), "entry", "2"]


def test_the_slots_say_what_glidein_pools_ask_for(glidein: Glidein) -> None:
    slots = glidein.ads()
    ad = next(ad for ad in slots if str(ad["Name"]).startswith("slot1@"))
    assert (ad["GLIDEIN_Entry_Name"], ad["GLIDEIN_Site"], ad["IS_GLIDEIN"]) == ("entry", "entry", True)
    assert ad["slot1_State"] == ad["State"]
    assert ad["GLIDEIN_BLACKHOLEValue"] == 0
    assert len([ad for ad in slots if "slot1_JobStarts" in ad]) == len(slots)
    assert "JobBusyTimeCount" in ad


def test_the_script_reads_our_logs_and_ends_in_order(glidein: Glidein) -> None:
    """It counts activations and jobs from StartdLog and StarterLog, and reports them to the factory."""
    jobs = glidein.jobs
    jobs.done(jobs.one("alice", "exit 3"))
    jobs.until(lambda: not any(ad["State"] == "Claimed" for ad in glidein.ads()) or None, "the claim's end")
    glidein.end()
    said = (glidein.here / "startup.out").read_text(errors="replace")
    report = (glidein.here / "error_gen.out").read_text()
    assert report.startswith("-ok condor_startup.sh"), report
    assert "CondorKilled True" in report
    assert "Total number of activations/claims: 3\n" in said
    assert "(Real) Total jobs 3 " in said, said
    assert "TotalJobsNr" in report, said
    assert jobs.slots() == [], "the ads were taken back"
