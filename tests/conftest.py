"""What every test may use: root-only tests are left out with the reason, accounts are thrown away."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadFileScheduling

# The wheel warns at import when it finds no configuration, and reads the node's when it finds one.
os.environ["CONDOR_CONFIG"] = os.devnull
for _name in [name for name in os.environ if name.upper().startswith("_CONDOR_")]:
    del os.environ[_name]

from cedar import apart  # noqa: E402  (after the environment is set)
from demo import accounts as demo_accounts  # noqa: E402
from demo import runtime  # noqa: E402

# A machine that has more to do may be slow at one example.
hypothesis_settings.register_profile("sailplane", deadline=None)
hypothesis_settings.load_profile("sailplane")

# Folders whose files take long, in the order in which they are handed out to several processes: the last must be short.
_LONG = ("e2e", "procd", "demo", "glexec", "pool", "jobwrapper", "startd", "pilot")
# Folders whose files may not run beside each other: a demo removes what another that was killed has left.
_TOGETHER = ("demo",)
# Files whose cases need nothing of each other: each process has a site for those that it gets.
_BY_CASE = ("test_e2e_kill_matrix.py",)
_NOBODY = 65534
_NOT_ROOT = "needs root: makes accounts and switches between them"


def _unit(nodeid: str) -> str:
    """What is not divided between processes or shards: a file, since its tests share what its fixtures put up.

    Files share nothing but the machine, as two checkouts do that are tested on it at the same time.
    """
    path = Path(nodeid.partition("::")[0])
    if path.name in _BY_CASE:
        return nodeid
    return str(path.parent if path.parent.name in _TOGETHER else path)


class _ByUnit(LoadFileScheduling):
    """For `pytest -n 2`."""

    def _split_scope(self, nodeid: str) -> str:
        return _unit(nodeid)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shard 2/4`: the second of four parts, which together are all; nothing else is run."""
    parser.addoption("--shard", type=_shard, default=(1, 1), metavar="I/N", help="run the I-th of N parts")


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text}: not I/N with 1 <= I <= N")
    return int(number), int(of)


def _keep_shard(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, of = config.getoption("shard")
    units = {unit: place for place, unit in enumerate(dict.fromkeys(_unit(item.nodeid) for item in items))}
    others = [item for item in items if units[_unit(item.nodeid)] % of != number - 1]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if units[_unit(item.nodeid)] % of == number - 1]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByUnit:
    """For any number of processes; the files in the order of collection."""
    config.option.loadscopereorder = False
    return _ByUnit(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs root when we are not, or user namespaces where there are none, and say so."""
    _keep_shard(config, items)
    if hasattr(config, "workerinput"):
        items.sort(key=_long_ones_first)
    for item in items:
        if item.get_closest_marker("needs_root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason=_NOT_ROOT))
        elif (marker := item.get_closest_marker("needs_userns")) and (lack := _userns_lack(**marker.kwargs)):
            item.add_marker(pytest.mark.skip(reason=lack))


def _long_ones_first(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return _LONG.index(folder) if folder in _LONG else len(_LONG)


@functools.cache
def _userns_lack(*, in_place: bool = False) -> str:
    """Why no other account can run jobs at sub-uids here (from this very checkout); "" when one can."""
    if shutil.which("newuidmap") is None:
        return "newuidmap (package uidmap) is not installed"
    interpreter = Path(sys.executable).resolve()
    if in_place and not all(runtime.traversable(place) for place in (interpreter, runtime.ROOT / "x")):
        return "other accounts can't reach this checkout or its interpreter"
    done = subprocess.run(
        ["unshare", "--user", "true"], user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", capture_output=True
    )
    return f"an ordinary account can make no user namespace here: {done.stderr.decode()}" if done.returncode else ""


@pytest.fixture(scope="session")
def accounts() -> Iterator[Mapping[str, demo_accounts.Account]]:
    """Accounts `sptest<4hex>-pool|pilot|alice|bob` by role, removed with their processes afterwards."""
    if os.geteuid() != 0:
        pytest.skip(_NOT_ROOT)
    with demo_accounts.throw_away("test") as made:
        yield made


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every account can reach and write, as a temporary directory is.

    pytest's own are below one that only its account can pass through, and that each further
    pytest of that account closes again.
    """
    directory = Path(tempfile.mkdtemp(prefix="sptest-", dir="/var/tmp"))
    directory.chmod(0o1777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def evaluations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated in a fork gets its answer however busy the machine is, and whatever the tests before asked for.

    The limits themselves are the matter of tests/cedar/test_cedar_reach.py, which has them as they are.
    """
    monkeypatch.setattr(apart, "AT_ONCE_S", 60.0)
    monkeypatch.setattr(apart, "CLOCK_S", 30.0)
    monkeypatch.setattr(apart, "shared", apart.Allowance(60.0))
