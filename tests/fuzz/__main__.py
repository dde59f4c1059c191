"""``./dev fuzz [NAME ...] [--seconds N]``: run the fuzz targets under atheris, coverage-guided, one after the other.

A target is a module ``tests/fuzz/fuzz_NAME.py`` with ``SEEDS`` (bytes that are taken, or nearly) and ``once(data)``,
which feeds hostile bytes to one of our parsers and raises when the parser does what it must not: any exception but its
own refusals, more memory than its limits allow, a wrong event. The quick tests run every target, too, with bytes of
hypothesis' making (``test_fuzz_targets.py``). What a run finds lies in ``.fuzz/NAME``; the next one tries it first.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parents[1] / ".fuzz"
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))
# Longer inputs find nothing that shorter ones do not, and make every try slower.
MAX_INPUT_BYTES = 16 * 1024


def target(name: str) -> ModuleType:
    """The module of one target."""
    return importlib.import_module(f"tests.fuzz.fuzz_{name}")


@click.command(name="fuzz", epilog="Example: ./dev fuzz tar_stream --seconds 600")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--seconds", type=click.IntRange(1), default=60, show_default=True, help="For each target.")
@click.option("--only", hidden=True, help="Run this one in this process.")
def main(names: tuple[str, ...], seconds: int, only: str | None) -> int:
    """Feed hostile bytes to our parsers until one fails, or the time is over."""
    if only is not None:
        _fuzz(only, seconds)
    for name in names or NAMES:
        click.echo(f"{name}: {seconds} s", err=True)
        # A process each: a finding ends it, and so does the end of its time.
        command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--seconds", str(seconds)]
        if subprocess.run(command, cwd=HERE.parents[1], check=False).returncode:
            click.echo(
                f"{name}: failed; the input is the file crash-* (or oom-*, timeout-*) in {CORPUS / name}", err=True
            )
            sys.exit(1)
    return 0


def _fuzz(name: str, seconds: int) -> None:
    import atheris  # installed by ./dev fuzz only

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["cedar", "pilot", "starter", "jobwrapper"]):
        module = target(name)
    for number, seed in enumerate(module.SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    os.environ.setdefault("CONDOR_CONFIG", os.devnull)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=1024", "-timeout=20"]
    options += [f"-artifact_prefix={corpus}/", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], module.once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
