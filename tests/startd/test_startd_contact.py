"""Where a startd is reached: what it reads of other daemons' files, and which address it tells."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from cedar.errors import PeerFault
from cedar.sinful import Sinful
from startd.contact import AddressFile, behind_shared_port, follow_shared_port, is_own, own_host, where_now

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})


def test_a_collector_with_port_0_is_where_its_file_says(tmp_path: Path) -> None:
    file, collector = tmp_path / "collector", Sinful("cm", 0, {})
    with pytest.raises(PeerFault, match="COLLECTOR_ADDRESS_FILE"):
        where_now(collector, file)
    for text in ("", "nothing\n", "\n<127.0.0.1:1>\n"):
        file.write_text(text)
        with pytest.raises(PeerFault):
            where_now(collector, file)
    file.write_text("<127.0.0.1:77?sock=collector>\n$CondorVersion: 25.14.0 $\n")
    assert where_now(collector, file) == Sinful("127.0.0.1", 77, {"sock": "collector"})
    assert where_now(Sinful("cm", 9618, {}), file) == Sinful("cm", 9618, {})


def test_of_every_address_the_one_by_which_the_pool_is_reached_is_told() -> None:
    assert own_host("10.1.2.3", []) == "10.1.2.3"
    assert own_host("0.0.0.0", [Sinful("127.0.0.1", 9618, {})]) == "127.0.0.1"
    assert own_host("0.0.0.0", [Sinful("no such host", 1, {})]) == "127.0.0.1"
    assert own_host("::", []) == "::1"


def test_whose_address_it_is() -> None:
    assert [is_own(host) for host in ("127.0.0.1", "localhost", "192.0.2.1", "cm.example")] == [
        True,
        True,
        False,
        False,
    ]


async def test_a_shared_port_is_waited_for_and_followed(autojump_clock: object, tmp_path: Path) -> None:
    file = tmp_path / "shared_port_ad"
    assert await behind_shared_port("startd_1", file, within_s=1.0) is None
    file.write_text('MyAddress = "<127.0.0.1:')  # half written
    assert await behind_shared_port("startd_1", file, within_s=1.0) is None
    file.write_text('MyAddress = "<127.0.0.1:77?noUDP>"\n')
    told = await behind_shared_port("startd_1", file)
    assert told == Sinful("127.0.0.1", 77, {"noUDP": "", "sock": "startd_1"})

    moves: list[Sinful] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_shared_port, told, file, moves.append)
        await trio.sleep(100)
        file.unlink()
        await trio.sleep(100)
        file.write_text('MyAddress = "<127.0.0.1:78?noUDP>"\n')
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert moves == [Sinful("127.0.0.1", 78, {"noUDP": "", "sock": "startd_1"})]


def test_an_address_file_is_removed_by_who_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "address"
    first, second = AddressFile(path, LOG), AddressFile(path, LOG)
    first.write("<127.0.0.1:1>")
    second.write("<127.0.0.1:2>")
    first.remove()
    assert path.read_text().startswith("<127.0.0.1:2>\n$CondorVersion: ")
    second.remove()
    assert not path.exists()
    AddressFile(tmp_path / "missing" / "address", LOG).write("<127.0.0.1:1>")  # ends nothing
