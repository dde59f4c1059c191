"""The example of a glidein script on a site, ready to be run as a batch system would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from demo import layout
from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

SCRIPT = Path(__file__).parents[2] / "conf" / "glidein.sh"


@contextmanager
def pool_for_glideins() -> Iterator[Jobs]:
    """A pool without an execution point; its end must leave nothing behind."""
    with Site.open("test", linger=True) as site:
        site.start_pool()
        token = site.layout.pilot / "tokens.d" / "startd.token"
        token.write_bytes(site.layout.startd_token.read_bytes())
        own(site, token, 0o600)
        yield Jobs(site)
        site.stop()
        assert site.left == []


def own(site: Site, path: Path, mode: int) -> None:
    account = site.accounts["pilot"]
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)


def runtime(site: Site) -> Path:
    """A directory as a script would have fetched it."""
    program = site.layout.root / "runtime" / "bin" / "sailplane-startd"
    if not program.exists():
        program.parent.mkdir(parents=True)
        words = site.runtime.argv("sailplane-startd")
        exports = "".join(f"export {name}='{value}'\n" for name, value in site.runtime.environment.items())
        program.write_text(f'#!/bin/sh\n{exports}exec {words[0]} {words[1]} "{words[2]}" "$@"\n')
        program.chmod(0o755)
    return program.parent.parent


@attrs.frozen
class Glidein:
    """One run of the example script, not started yet: at the pilot's account, in ``home``."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    home: Path
    work: Path


def prepare(jobs: Jobs, name: str, lines: dict[str, object], **knobs: object) -> Glidein:
    """Its files: ``lines`` of glidein_config, ``knobs`` of the startd."""
    site, pilot = jobs.site, jobs.site.layout.pilot
    assert site.installed is not None
    collector = site.layout.collector_address.read_text().splitlines()[0]
    values = layout.startd_values(site.layout, collector=collector, switch=site.installed.front) | STARTD_KNOBS
    for taken in ("LOCAL_DIR", "NUM_CPUS", "COLLECTOR_HOST", "SAILPLANE_PILOT_PROXY"):
        values.pop(taken, None)
    values["SEC_TOKEN_DIRECTORY"] = pilot / "tokens.d"
    work = pilot / name
    settings = pilot / f"{name}.conf"
    settings.write_text(layout.text(values | knobs))
    own(site, settings, 0o644)
    keys: dict[str, object] = {
        "SAILPLANE_RUNTIME": runtime(site), "SAILPLANE_CONFIG": settings, "GLIDEIN_Collector": collector,
        "X509_USER_PROXY": site.layout.pilot_proxy, "GLIDEIN_CPUS": 2, "GLIDEIN_Site": "TEST-SITE", **lines,
    }  # fmt: skip
    config = pilot / f"{name}.glidein_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in keys.items()))
    own(site, config, 0o600)
    argv = ("/bin/bash", str(SCRIPT), str(config), str(work))
    return Glidein(argv, site.environment(pilot), pilot, work)
