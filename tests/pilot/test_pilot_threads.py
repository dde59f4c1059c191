"""Work beside the event loop where the account may have no more tasks, as in a job's fork bomb."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from demo.accounts import Account
from pilot.threads import in_thread

ROOT = Path(__file__).resolve().parents[2]
# argv: what is tried, as the account that it runs at and that has as many processes as it may.
NO_THREADS = """
import resource, sys, trio
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
from pilot.threads import in_thread
async def main():
    try:
        await in_thread(int)
    except BlockingIOError as error:
        print(error.strerror)
trio.run(main)
"""


def without_threads(program: str, account: Account) -> str:
    """What a program prints at an account that may have one process only. For root."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        user=account.uid, group=account.gid, extra_groups=[], cwd="/", timeout=60, text=True, capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_it_is_done() -> None:
    assert await in_thread(lambda: 7) == 7


async def test_what_goes_wrong_in_it_is_shown() -> None:
    def work() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        await in_thread(work)


@pytest.mark.needs_root
def test_a_thread_that_is_refused_is_no_bug_of_ours(accounts: Mapping[str, Account]) -> None:
    assert without_threads(NO_THREADS, accounts["pilot"]) == "the host gives us no more threads\n"
