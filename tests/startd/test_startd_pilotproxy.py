"""The pilot's own proxy is renewed from a file or from MyProxy, and never becomes another's."""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from demo.grid import Grid, make_grid, make_proxy, write_private
from pilot import credentials, myproxy
from startd.pilotproxy import ASK_AGAIN_S, PilotProxy, parse_myproxy
from tests.pilot.myproxyserver import MISSING, myproxy_server

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return make_grid(tmp_path_factory.mktemp("grid"), key="rsa")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pilot").mkdir(mode=0o700)
    return tmp_path / "pilot"


def ends_at(path: Path) -> float:
    return credentials.load(path.read_bytes()).expires_at - time.time()


async def test_a_file_that_somebody_renews_is_taken_over(grid: Grid, place: Path) -> None:
    pilot = grid.user("Pilot Factory")
    proxy = write_private(place / "proxy", make_proxy(pilot, lifetime_s=600).pem)
    source = place / "source"
    keeper = PilotProxy(proxy, grid.certificates_dir, LOG, source=source)
    assert not await keeper.look()
    write_private(source, b"")
    for wrong in (b"junk", make_proxy(pilot, lifetime_s=300).pem, make_proxy(grid.user("Bob"), lifetime_s=7200).pem):
        source.write_bytes(wrong)
        assert not await keeper.look()
        assert ends_at(proxy) == pytest.approx(600, abs=60)
    source.write_bytes(make_proxy(pilot, lifetime_s=7200).pem)
    assert await keeper.look()
    assert ends_at(proxy) == pytest.approx(7200, abs=60)
    assert stat.S_IMODE(proxy.stat().st_mode) == 0o600
    assert not await keeper.look()


async def test_myproxy_is_asked_before_the_end_and_not_all_the_time(
    grid: Grid, place: Path, autojump_clock: trio.testing.MockClock
) -> None:
    pilot, asked = grid.user("Pilot Factory"), [0]
    proxy = write_private(place / "proxy", make_proxy(pilot, lifetime_s=12 * 3600).pem)

    def fetch(server: myproxy.Server, client: myproxy.Client, username: str, **how: object) -> bytes:
        asked[0] += 1
        assert (str(server), username, how["old_pem"]) == ("mp.example.org:7512", "pilot", proxy.read_bytes())
        if asked[0] == 1:
            raise myproxy.MyProxyError("refused", "not now")
        return make_proxy(pilot, lifetime_s=(4 if asked[0] == 2 else 20) * 3600).pem

    server, username = parse_myproxy("pilot@mp.example.org")
    keeper = PilotProxy(proxy, grid.certificates_dir, LOG, server=server, username=username, fetch=fetch)
    assert not await keeper.look()
    assert asked == [0]
    proxy.write_bytes(make_proxy(pilot, lifetime_s=5 * 3600).pem)
    assert not await keeper.look()
    assert not await keeper.look()
    assert asked == [1]
    await trio.sleep(ASK_AGAIN_S + 1)
    assert not await keeper.look()  # what came lives shorter
    assert ends_at(proxy) == pytest.approx(5 * 3600, abs=60)
    await trio.sleep(ASK_AGAIN_S + 1)
    assert await keeper.look()
    assert ends_at(proxy) == pytest.approx(20 * 3600, abs=60)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)} (package myproxy-server)")
async def test_the_real_server_renews_a_pilot_that_shows_its_own_proxy(grid: Grid, place: Path, tmp_path: Path) -> None:
    pilot = grid.user("Pilot Factory", key="rsa")
    proxy = write_private(place / "proxy", make_proxy(pilot, lifetime_s=900).pem)
    with myproxy_server(grid, tmp_path / "server", pilot) as running:
        await trio.to_thread.run_sync(lambda: running.store(pilot, "pilot", "-x", "-R", pilot.subject, "-c", "100"))
        keeper = PilotProxy(proxy, grid.certificates_dir, LOG, server=running.server, username="pilot")
        assert await keeper.look()
    assert ends_at(proxy) > 11 * 3600  # what myproxy-init allows unless told otherwise


@pytest.mark.parametrize("text", ["host", "@host", "a@b c", "a@"])
def test_what_names_no_account_at_a_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_myproxy(text)
