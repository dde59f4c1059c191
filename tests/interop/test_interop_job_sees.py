"""What a job of a stock schedd sees here: its words and variables as the submit language made them, chirp through a
stock shadow with the wheel's client, tokens, deferral, commands around it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.interop.stockjobs import COMPLETED, StockJobs
from tests.userlog import HELD

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]

# Every argument and variable on a line of its own, with its end visible.
SHOW = 'for word in "$@"; do printf "[%s]" "$word"; done; printf "\\n[%s][%s]" "$ONE" "$TWO"'


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ({"arguments": "\"'a b' '' 'it''s' \"\"quoted\"\" c\"", "environment": "\"ONE='a b' TWO='it''s ; |'\""},
         "[a b][][it's][\"quoted\"][c]\n[a b][it's ; |]"),
        ({"arguments": "a 'b c", "environment": "ONE=x y;TWO=z"}, "[a]['b][c]\n[x y][z]"),
        ({"arguments": "$$(Cpus) $$(Nothing:none)", "environment": '"ONE=$$(OpSys)"'}, "[1][none]\n[LINUX][]"),
    ],
)  # fmt: skip
def test_words_and_variables_are_those_of_the_submit_file(stock: StockJobs, lines: dict[str, str], shown: str) -> None:
    assert stock.done(stock.one("alice", SHOW, **lines)) == shown


def test_the_scratch_directory_in_a_jobs_words(stock: StockJobs) -> None:
    words = {"arguments": "$$(CondorScratchDir)/x", "environment": '"W=$$(CondorScratchDir)"'}
    job = stock.one("alice", 'echo "$1 $W $PWD"', **words)
    path, word, here = stock.done(job).split()
    assert (path, word) == (f"{here}/x", here)


CLIENT = """
import warnings; warnings.simplefilter("ignore")
from htchirp import HTChirp
with HTChirp() as chirp:
    print(chirp.get_job_attr("Owner"))
    chirp.set_job_attr("SailplaneProgress", "0.5")
    chirp.set_job_attr_delayed("ChirpDone", '"yes"')
    chirp.ulog("half way")
    chirp.put("large", "{home}/back")
    chirp.fetch("{home}/back", "again")
    print(open("again", "rb").read() == open("large", "rb").read())
    print(chirp.read("{home}/back", 4, offset=2), chirp.stat("{home}/back")["size"])
    print(chirp.write(b"XY", "{home}/back", "w", offset=1), chirp.read("{home}/back", 5))
    chirp.mkdir("{home}/made", 0o755)
    chirp.rename("{home}/back", "{home}/made/back")
    print(chirp.getdir("{home}/made"))
    print(chirp.whoami())
    chirp.unlink("{home}/made/back")
    for refused in ("/etc/shadow", "{home}/no/such"):
        try: chirp.fetch(refused, "never")
        except HTChirp.ChirpError as error: print(type(error).__name__)
"""


def test_chirp_through_a_stock_shadow(stock: StockJobs) -> None:
    wheel = next(path for path in sys.path if os.path.isdir(os.path.join(path, "htcondor")))
    site, user = stock.site, stock.user("alice")
    site.put(user, "htchirp.py", (Path(wheel) / "htcondor/htchirp/htchirp.py").read_bytes())
    site.put(user, "client.py", CLIENT.replace("{home}", str(user.home)).encode())
    job = stock.one(
        "alice", "head -c 3000000 /dev/urandom > large; printf 01234567 > large; /usr/bin/python3 client.py",
        transfer_input_files="htchirp.py, client.py", **{"+WantIOProxy": "true"},
    )  # fmt: skip
    owner = stock.site.accounts["alice"].name
    lines = stock.done(job).splitlines()
    errors = (job.home / f"{job.name}.err.0").read_text()
    assert lines[:5] == [f'"{owner}"', "True", "b'2345' 8", "2 b'0XY34'", "['back']"], errors
    assert lines[6:] == ["NotAuthorized", "DoesntExist"], errors
    assert not (user.home / "made" / "back").exists()
    assert any("half way" in event.text for event in stock.events(job))
    stock.until(lambda: stock.status(job) == COMPLETED or None, "the job to leave the queue")
    ad = stock.ad(job)
    assert ad["SailplaneProgress"] == 0.5
    assert ad["ChirpDone"] == "yes"
    assert len(stock.switch_calls(job)) == 3


def test_tokens_of_a_stock_credential_directory_are_renewed(stock: StockJobs) -> None:
    owner = stock.site.accounts["alice"].name
    directory = stock.pool.here / "oauth" / owner
    directory.mkdir(parents=True, exist_ok=True)

    def give(text: str) -> None:
        fresh = directory / "fresh"
        fresh.write_text(text)
        fresh.chmod(0o600)
        fresh.rename(directory / "box.use")

    give("first")
    script = "cat $_CONDOR_CREDS/box.use; touch ready; until grep -q second $_CONDOR_CREDS/box.use; do sleep 0.1; done"
    job = stock.one("alice", script, **{"+OAuthServicesNeeded": '"box"'})
    stock.until(lambda: list(stock.site.layout.execute.glob("*/s/*/ready")) or None, "the job to have its token")
    give("second")
    assert stock.done(job) == "first"
    assert len(stock.switch_calls(job)) == 4
    shutil.rmtree(directory)


def test_a_deferred_job_starts_at_its_time(stock: StockJobs) -> None:
    at = int(time.time()) + 8
    job = stock.one("alice", "date +%s", deferral_time=str(at), deferral_window="60", deferral_prep_time="60")
    assert at <= int(stock.done(job)) < at + 30
    assert len(stock.switch_calls(job)) == 3


@pytest.mark.parametrize(("which", "code"), [("Pre", 43), ("Post", 44)])
def test_a_command_around_the_job_that_fails_holds_it(stock: StockJobs, which: str, code: int) -> None:
    job = stock.one("alice", "exit 0", **{f"+{which}Cmd": '"/bin/false"', f"+Success{which}ExitCode": "0"})
    stock.wait(job, HELD)
    assert stock.ad(job)["HoldReasonCode"] == code
    stock.act("rm", job)


def test_a_container_is_refused_in_words(stock: StockJobs) -> None:
    job = stock.one("alice", "exit 0", **{"+SingularityImage": '"/cvmfs/image.sif"'})
    held = stock.wait(job, HELD)
    assert "SingularityImage" in held.text
    assert stock.ad(job)["HoldReasonCode"] == 35
    assert not stock.switch_calls(job)
    stock.act("rm", job)
