"""Runs HTCondor's own tests with our startd under their pools' condor_master, and with the stock one for comparison.

    SAILPLANE_HTCONDOR=PREFIX SAILPLANE_HTCONDOR_SOURCE=SOURCE .venv/bin/python -m tests.interop.condortests NAME ...

NAME is a test's file without .py (test_run_sleep_job). The tests are read from the source (src/condor_tests) and stay
there: they are HTCondor's. They run at a throw-away account, so the switch is 'none'; root makes it. Prints one line a
test, and what failed with --why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import attrs
import click

from demo import accounts
from demo.daemons import switched
from tests.interop.stockpool import VARIABLE

SOURCE = "SAILPLANE_HTCONDOR_SOURCE"
ROOT = Path(__file__).resolve().parents[2]
# Where HTCondor's bindings are: some tests hand it to their jobs and plugins.
MODULES = sysconfig.get_path("purelib")
# Tests that wait for something which never comes give up by themselves after some minutes.
WITHIN_S = 900.0
# Short, since Unix sockets lie below.
BASE = Path("/var/tmp")
# What an installed HTCondor's configuration says of one machine; the tests write the rest.
CONFIGURATION = """\
RELEASE_DIR = {prefix}
LOCAL_DIR = {here}
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = example.com
UID_DOMAIN = example.com
TRUST_DOMAIN = example.com
FILESYSTEM_DOMAIN = example.com
CONDOR_ADMIN =
ENABLE_KERNEL_TUNING = False
DISCARD_SESSION_KEYRING_ON_STARTUP = False
use SECURITY:recommended_v9_0
ALLOW_DAEMON = {account}@*, $(ALLOW_DAEMON)
ALLOW_ADMINISTRATOR = {account}@*, $(ALLOW_ADMINISTRATOR)
"""


@attrs.frozen
class Result:
    """Of one file: how many tests ended how, and the words of those that did not pass."""

    counts: Mapping[str, int]
    words: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        shown = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()) if count)
        return f"{shown or 'nothing'} in {self.seconds:.0f} s"


def environment(here: Path, prefix: Path, owner: accounts.Account, ours: bool) -> dict[str, str]:
    configuration = CONFIGURATION.format(prefix=prefix, here=here, account=owner.name)
    path = f"{prefix}/bin:{prefix}/sbin:{ROOT}/.venv/bin:/usr/bin:/bin"
    if ours:  # HTCondor's has its plugins inherit it; those of the tests want the modules of our interpreter
        configuration += f"STARTER_JOB_ENVIRONMENT = PATH={path};PYTHONPATH={MODULES}\n"
    (here / "condor_config").write_text(configuration)
    said = {
        "PATH": path,
        "HOME": str(here),
        "USER": owner.name,
        "LANG": "C.UTF-8",
        "TMPDIR": str(here),
        "CONDOR_CONFIG": str(here / "condor_config"),
        "PYTHONPATH": MODULES,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if ours:
        said |= {
            "_CONDOR_STARTD": str(ROOT / ".venv/bin/sailplane-startd"),
            "_CONDOR_SAILPLANE_SWITCH": "none",
            "_CONDOR_SAILPLANE_MIN_FREE_DISK": "0",
        }
    return said


def run(name: str, source: Path, prefix: Path, *, ours: bool, keep: Path | None) -> Result:
    """One file of tests, in a directory of its own."""
    with accounts.throw_away("test", ["pilot"]) as made:
        owner = made["pilot"]
        here = Path(tempfile.mkdtemp(prefix="ct-", dir=BASE))
        os.chown(here, owner.uid, owner.gid)
        here.chmod(0o755)
        # An ordinary account: sessions of condor_ssh_to_job want a shell, ssh a home.
        subprocess.run(["usermod", "--shell", "/bin/sh", "--home", str(here), owner.name], check=True)
        began_s = time.monotonic()
        report = here / "report.xml"
        argv = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
            f"--base-test-dir={here}/t", str(source / "src/condor_tests" / f"{name}.py"),
        ]  # fmt: skip
        with (here / "output").open("wb") as output, suppress(subprocess.TimeoutExpired):
            subprocess.run(
                argv, cwd=here, env=environment(here, prefix, owner, ours), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, timeout=WITHIN_S, check=False, **switched(owner),
            )  # fmt: skip
        result = _read(report, here / "output", time.monotonic() - began_s)
        if keep is not None:
            shutil.copytree(here, keep / f"{name}-{'ours' if ours else 'stock'}", symlinks=True, dirs_exist_ok=True)
        accounts.kill_all(owner.uid)
        shutil.rmtree(here, ignore_errors=True)
        return result


def _read(report: Path, output: Path, seconds: float) -> Result:
    if not report.exists():
        tail = output.read_text(errors="replace")[-2000:]
        return Result({"did not end": 1}, (tail,), seconds)
    counts: Counter[str] = Counter()
    words = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = [child for child in case if child.tag in ("failure", "error", "skipped")]
        counts[{"failure": "failed", "error": "errors"}.get(failed[0].tag, failed[0].tag) if failed else "passed"] += 1
        words += [f"{case.get('name')}: {child.get('message', '')[:400]}" for child in failed]
    return Result(counts, tuple(words), seconds)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--stock", is_flag=True, help="With HTCondor's own startd.")
@click.option("--why", is_flag=True, help="Print what did not pass.")
@click.option(
    "--keep", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Keep the pools' logs here."
)
def main(names: tuple[str, ...], stock: bool, why: bool, keep: Path | None) -> None:
    """Run HTCondor's own tests."""
    prefix, source = os.environ.get(VARIABLE), os.environ.get(SOURCE)
    if not prefix or not source or not Path(source, "src/condor_tests").is_dir():
        raise click.UsageError(f"set {VARIABLE} to an installed HTCondor and {SOURCE} to its source (src/condor_tests)")
    if os.geteuid() != 0:
        raise click.UsageError("needs root, which makes the account that the tests run at")
    for name in names:
        result = run(name, Path(source), Path(prefix), ours=not stock, keep=keep)
        click.echo(f"{name}\t{'stock' if stock else 'ours'}\t{result}")
        for word in result.words if why else ():
            click.echo(f"    {word}")


if __name__ == "__main__":
    main()
