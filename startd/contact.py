"""Where this startd is reached: its port, the address that it tells, and the file by which tools find it here."""

from __future__ import annotations

import ipaddress
import logging
import os
import platform
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs
import trio

from cedar.classads import get_str, parse_old
from cedar.commands import condor_version_text
from cedar.errors import PeerFault
from cedar.sharedport import Passed
from cedar.sinful import Sinful
from startd.master import Master

DEFAULT_COLLECTOR_PORT = 9618
# NETWORK_INTERFACE: every address of the machine; the one by which the pool is reached is told.
ANY = "*"
_WILDCARDS = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_HOST_PORT = re.compile(r"(\[[^\]]+\]|[^:\s<>?]+)(?::(\d{1,5}))?(\?[^\s<>]*)?")
# A master starts its shared port before us, and waits for that file.
SHARED_PORT_WITHIN_S, LOOK_EVERY_S = 10.0, 0.1
FOLLOW_EVERY_S = 20.0
# An address file is three lines and an ad.
MAX_ADDRESS_FILE_BYTES = 65_536


def collector_addresses(text: str | None, knob: str = "COLLECTOR_HOST") -> list[Sinful]:
    """COLLECTOR_HOST, or another ``knob`` like it: names or addresses, with or without port, separated by commas or
    blanks. Port 0 stands for what COLLECTOR_ADDRESS_FILE says.

    Raises:
        ValueError: a part that is no address.
    """
    found = []
    for part in re.split(r"[,\s]+(?![^<]*>)", text or ""):
        if not part:
            continue
        if part.startswith("<"):
            found.append(Sinful.parse(part))
            continue
        match = _HOST_PORT.fullmatch(part)
        try:
            if match is None:
                raise PeerFault("address")
            found.append(Sinful.parse(f"<{match[1]}:{match[2] or DEFAULT_COLLECTOR_PORT}{match[3] or ''}>"))
        except PeerFault:
            raise ValueError(f"{knob} has {part!r}: allowed are host, host:port or <host:port?...>") from None
    return found


def where_now(collector: Sinful, address_file: Path) -> Sinful:
    """The collector's address; of one with port 0 what it has left in its file, which it makes anew when it starts.

    Raises:
        PeerFault: the file is not there (yet), or has no address.
    """
    if collector.port:
        return collector
    try:
        with address_file.open("rb") as file:
            first = file.read(MAX_ADDRESS_FILE_BYTES).partition(b"\n")[0]
    except OSError as fault:
        raise PeerFault("address", f"COLLECTOR_ADDRESS_FILE = {address_file}: {fault.strerror}") from fault
    return Sinful.parse(first.decode("ascii", "replace").strip())


def own_host(bound: str, towards: Iterable[Sinful]) -> str:
    """The address to tell: ``bound``, or if that is every address of the machine, the one by which the first collector
    that can be looked up is reached. No packet is sent."""
    if bound not in _WILDCARDS.values():
        return bound
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    for peer in towards:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((peer.host, peer.port or DEFAULT_COLLECTOR_PORT))
            return str(probe.getsockname()[0])
    return "::1" if family == socket.AF_INET6 else "127.0.0.1"


def shared_port_now(name: str, ad_file: Path) -> Sinful:
    """Our address behind a shared port, which says in a file where it is.

    Raises OSError, PeerFault: the file is not there, or just being written.
    """
    with ad_file.open("rb") as file:
        text = file.read(MAX_ADDRESS_FILE_BYTES).decode("utf-8", "replace")
    address = Sinful.parse(get_str(parse_old(text), "MyAddress"))
    return Sinful(address.host, address.port, {**address.params, "sock": name})


async def behind_shared_port(name: str, ad_file: Path, within_s: float = SHARED_PORT_WITHIN_S) -> Sinful | None:
    """The same, waited for; None if it does not come in time."""
    with trio.move_on_after(within_s):
        while True:
            try:
                return shared_port_now(name, ad_file)
            except (OSError, PeerFault):
                await trio.sleep(LOOK_EVERY_S)
    return None


async def follow_shared_port(
    told: Sinful, ad_file: Path, moved: Callable[[Sinful], None], look_s: float = FOLLOW_EVERY_S
) -> None:
    """Until cancelled: ``moved`` hears of each new address of ours, when the shared port has come back elsewhere."""
    while told.sock is not None:
        await trio.sleep(look_s)
        try:
            now = shared_port_now(told.sock, ad_file)
        except (OSError, PeerFault):
            continue
        if now != told:
            told = now
            moved(now)


class Wanted(Protocol):
    """The knobs that decide where we listen."""

    @property
    def network_interface(self) -> str: ...
    @property
    def tcp_forwarding_host(self) -> str | None: ...
    @property
    def startd_port(self) -> int: ...
    @property
    def shared_port_daemon_ad_file(self) -> Path: ...


async def listen(
    wanted: Wanted, master: Master | None, towards: Iterable[Sinful], log: logging.LoggerAdapter[logging.Logger]
) -> tuple[list[trio.abc.Listener[trio.SocketStream]], Sinful]:
    """Where connections come in, and the address to tell: behind the master's shared port; at the port that the master
    gave; or at one of our own.

    Raises OSError: the port cannot be had.
    """
    if master is not None and master.endpoint is not None:
        name, sock = master.endpoint
        address = await behind_shared_port(name, wanted.shared_port_daemon_ad_file)
        if address is not None:
            return [Passed(sock, report=lambda fault: log.info("the shared port: %s", fault))], address
        log.warning("no address of a shared port in %s: going on without", wanted.shared_port_daemon_ad_file)
        sock.close()
    listeners = await _own_listeners(wanted, master)
    host, port = listeners[0].socket.getsockname()[:2]
    told = wanted.tcp_forwarding_host or own_host(str(host), towards)
    return [*listeners], Sinful(told, int(port), {"noUDP": ""})


def with_alias(address: Sinful, alias: str | None) -> Sinful:
    """The address with HOST_ALIAS, by which clients check this host's certificate."""
    return address if alias is None else attrs.evolve(address, params={**address.params, "alias": alias})


async def _own_listeners(wanted: Wanted, master: Master | None) -> list[trio.SocketListener]:
    if master is not None and master.listeners:
        by_family = sorted(master.listeners, key=lambda sock: sock.family != socket.AF_INET)
        return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in by_family]
    interface = wanted.network_interface
    return await trio.open_tcp_listeners(
        wanted.startd_port, host=_WILDCARDS[socket.AF_INET] if interface == ANY else interface
    )


def is_own(host: str) -> bool:
    """Whether ``host`` is an address of this machine, by which no other machine can be meant."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return True
    return False


class AddressFile:
    """STARTD_ADDRESS_FILE: tools of this node find the startd by it. Written as a whole, removed at the end."""

    def __init__(self, path: Path, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._path, self._log = path, log
        self._text = ""

    def write(self, address: str) -> None:
        """One that cannot be written is no reason to end."""
        self._text = f"{address}\n{condor_version_text()}\n$CondorPlatform: {platform.machine()}_Sailplane $\n"
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w", encoding="ascii", errors="replace") as file:
                file.write(self._text)
            new.replace(self._path)
        except OSError as fault:
            self._log.warning("STARTD_ADDRESS_FILE = %s: %s", self._path, fault.strerror)

    def remove(self) -> None:
        """If it is still ours: the next startd may have written its own."""
        with suppress(OSError):
            if self._path.read_text(encoding="ascii", errors="replace") == self._text:
                self._path.unlink()
