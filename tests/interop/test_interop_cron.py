"""Programs beside the jobs in a stock pool: what they measure of devices is in the job's ad and log, and what is set of
them is taken over while the startd runs."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.interop.stockjobs import StockJobs
from tests.interop.test_interop_policy import another_startd
from tests.userlog import EXECUTING, TERMINATED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

# As condor_gpu_utilization: for each device how long it was used since the last report, and the most of its memory.
MONITOR = """#!/bin/sh
for device in SQUID1 SQUID2; do
    echo "SlotMergeConstraint = StringListMember(\\"$device\\", AssignedSQUIDs)"
    echo UptimeSQUIDsSeconds = 0.5
    echo UptimeSQUIDsMemoryPeakUsage = 4${device#SQUID}
    echo "- $device"
done
"""


def script(stock: StockJobs, name: str, text: str) -> Path:
    path = Path(stock.site.layout.root) / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_what_is_measured_of_its_devices_is_in_a_jobs_ad_and_log(stock: StockJobs) -> None:
    knobs = {
        "MACHINE_RESOURCE_SQUIDs": "SQUID1, SQUID2",
        "STARTD_CRON_JOBLIST": "SQUIDs_MONITOR",
        "STARTD_CRON_SQUIDs_MONITOR_EXECUTABLE": script(stock, "monitor", MONITOR),
        "STARTD_CRON_SQUIDs_MONITOR_MODE": "periodic",
        "STARTD_CRON_SQUIDs_MONITOR_PERIOD": "1s",
        "STARTD_CRON_SQUIDs_MONITOR_METRICS": "SUM:SQUIDs, PEAK:SQUIDsMemory",
    }
    with another_startd(stock, **knobs):
        go = stock.user("alice").home / "go-on"
        go.unlink(missing_ok=True)
        work = f"while [ ! -e {go} ]; do sleep 0.1; done; grep SQUIDs .update.ad"
        job = stock.one("alice", work, request_squids="1")
        stock.wait(job, EXECUTING)
        usage = stock.until(lambda: stock.ad(job).get("SQUIDsAverageUsage"), "the job's ad to have an average")
        assert 0 < usage < 1
        slot = stock.until(lambda: measured_slot(stock), "the slot to have them")
        device = slot["AssignedSQUIDs"]
        peak = float(f"4{device[-1]}")
        assert slot["DeviceSQUIDsMemoryPeakUsage"] == slot["SQUIDsMemoryUsage"] == peak
        assert "UptimeSQUIDsSeconds" not in slot
        go.touch()
        said = stock.done(job)
        assert re.search(r"SQUIDsAverageUsage = [1-9]", said), "the job itself can see it"
        ad = stock.ad(job)
        assert ad["SQUIDsMemoryUsage"] == peak
        text = stock.wait(job, TERMINATED).text
        assert re.search(rf"SQUIDs +: +{ad['SQUIDsAverageUsage']:.2f} +1 +1 +\"{device}\"", text, re.IGNORECASE), text


def measured_slot(stock: StockJobs) -> dict[str, Any] | None:
    return next((slot for slot in stock.slots() if "SQUIDsMemoryUsage" in slot), None)


def test_programs_are_taken_over_by_condor_reconfig(stock: StockJobs) -> None:
    first, second = (
        script(stock, "first", "#!/bin/sh\necho FIRST = 1\n"),
        script(stock, "second", "#!/bin/sh\necho SECOND = 2\n"),
    )
    programs = {
        "STARTD_CRON_JOBLIST": "FIRST",
        "STARTD_CRON_FIRST_EXECUTABLE": first,
        "STARTD_CRON_FIRST_MODE": "OneShot",
    }
    with another_startd(stock, **programs):
        stock.until(lambda: shown(stock).get("FIRST") == 1 or None, "the first one's answer at the collector")
        read_again(stock, STARTD_CRON_JOBLIST="SECOND")
        stock.until(lambda: "settings not read again" in stock.start_log() or None, "word of the setting that lacks")
        assert "STARTD_CRON_SECOND_EXECUTABLE" in stock.start_log()
        assert shown(stock).get("FIRST") == 1, "what cannot be run as described changes nothing"
        read_again(stock, STARTD_CRON_SECOND_EXECUTABLE=second, STARTD_CRON_SECOND_PERIOD="1s")
        stock.until(lambda: shown(stock).get("SECOND") == 2 or None, "the second one's answer at the collector")
        assert "FIRST" not in shown(stock)


def read_again(stock: StockJobs, **knobs: object) -> None:
    with (stock.site.layout.pilot / "startd.conf").open("a") as config:
        config.writelines(f"{name} = {value}\n" for name, value in knobs.items())
    assert stock.site.startd is not None
    stock.site.startd.signal(signal.SIGHUP)


def shown(stock: StockJobs) -> dict[str, Any]:
    """The partitionable slot's ad as the collector has it."""
    found = json.loads(stock.pool.tool("condor_status", "-json", "-constraint", "PartitionableSlot") or "[]")
    return dict(found[0]) if found else {}
