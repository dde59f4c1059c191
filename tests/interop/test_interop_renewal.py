"""Proxies replaced at a stock submit side while their jobs run: what the stock shadow pushes, and hears."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from demo.grid import Certified
from tests.interop.stockjobs import Job, StockJobs
from tests.userlog import HELD

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]
END = 'end() { openssl x509 -noout -enddate -in "$X509_USER_PROXY"; }; '
WAITS = END + 'first=$(end); echo begun >&2; while [ "$(end)" = "$first" ] && [ ! -e stop ]; do sleep 0.2; done; '
# The shadow's own words about a copy that it wanted to send, and about one that it sent.
COPY = "UPDATE_GSI_CRED"


def same(stock: StockJobs, role: str) -> Certified:
    """A new certificate of the same identity."""
    return stock.site.grid.user(stock.site.users[role].dn.rpartition("/CN=")[2])


def replace(stock: StockJobs, role: str, name: str, owner: Certified) -> None:
    """The file at the submit side; a shadow compares times of whole seconds, the first with its own start."""
    stock.proxy(role, name, owner, lifetime_s=7200)
    newer(stock.user(role).home / name)


def newer(path: Path) -> None:
    _clock[0] = max(_clock[0] + 2, time.time() + 2)
    os.utime(path, (_clock[0], _clock[0]))


_clock = [0.0]


def until_it_runs(stock: StockJobs, job: Job) -> None:
    stock.until(lambda: "begin_execution" in " ".join(stock.shadow_says(job)) or None, f"job {job.id} to run")


def test_a_proxy_that_is_replaced_reaches_the_job_by_delegation(stock: StockJobs) -> None:
    proxy = stock.proxy("alice", "renewable", same(stock, "alice"), lifetime_s=1200)
    job = stock.one("alice", WAITS + "end; ls", x509userproxy=proxy)
    until_it_runs(stock, job)
    replace(stock, "alice", "renewable", same(stock, "alice"))
    out = stock.done(job)
    assert "notAfter" in out
    assert "renewable.tmp" not in out
    assert not any("UpdateGSIcred" in line or COPY in line for line in stock.shadow_says(job)), "no copy was tried"
    ids = [str(call["id"]).partition("#renew")[1] for call in stock.switch_calls(job)]
    assert sorted(ids) == ["", "", "", "#renew"]


def test_another_identity_is_not_taken_no_key_is_sent_and_the_next_renewal_is(stock: StockJobs) -> None:
    proxy = stock.proxy("bob", "mixed", same(stock, "bob"), lifetime_s=1200)
    job = stock.one("bob", WAITS + "end; id -u", x509userproxy=proxy)
    until_it_runs(stock, job)
    replace(stock, "bob", "mixed", same(stock, "alice"))
    audit = stock.site.layout.pilot / "log" / "AuditLog"
    stock.until(
        lambda: (audit.exists() and "proxy-renewal-refused" in audit.read_text()) or None, "the refusal in the audit"
    )
    replace(stock, "bob", "mixed", same(stock, "bob"))
    out = stock.done(job)
    assert str(stock.site.accounts["bob"].uid) in out
    assert not any(COPY in line for line in stock.shadow_says(job)), "no copy was tried"


def test_a_broken_proxy_file_neither_harms_the_job_nor_sends_a_key(stock: StockJobs) -> None:
    """The shadow cannot delegate it, and wants to send the file as it is: that is refused before anything is sent."""
    proxy = stock.proxy("alice", "broken", same(stock, "alice"), lifetime_s=1200)
    job = stock.one("alice", WAITS + "end", x509userproxy=proxy)
    until_it_runs(stock, job)
    path = stock.user("alice").home / "broken"
    path.write_text("not a proxy\n")
    newer(path)
    stock.until(
        lambda: any("487" in line or COPY in line for line in stock.shadow_says(job)) or None, "the copy to be tried"
    )
    replace(stock, "alice", "broken", same(stock, "alice"))
    assert "notAfter" in stock.done(job)
    assert not [event for event in stock.events(job) if event.number == HELD]
