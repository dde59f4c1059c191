"""Who is meant by an entry of ALLOW_* and DENY_*: users and hosts, as HTCondor writes them. Pure.

`user@domain/host`, `user@domain`, `host`, or `*`; in the user `*` stands for anything. A host is an address, an address
that ends in `.*`, a network as `10.0.0.0/8` or `10.0.0.0/255.0.0.0`, `localhost`, or `*`. Other names of hosts are
refused: who answers for a name can give it to anybody, and each connection would wait for the resolver.
"""

from __future__ import annotations

import ipaddress
import re

import attrs

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# More in one list is a mistake.
MAX_ENTRIES = 1_000
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_USER = re.compile(r"\*|[^\s/@]+@[^\s/@]+")
_WILD = re.compile(r"((?:[0-9]{1,3}\.){1,3})\*")


@attrs.frozen
class Peers:
    """One entry. `networks` None: every host."""

    text: str
    user: re.Pattern[str]
    networks: tuple[Network, ...] | None

    def match(self, identity: str, host: str) -> bool:
        """Whether this name@domain at this address is meant."""
        if self.user.fullmatch(identity) is None:
            return False
        if self.networks is None:
            return True
        address = _address(host)
        return address is not None and any(address in network for network in self.networks)


def parse(text: str) -> tuple[Peers, ...]:
    """A list with commas or blanks between the entries. Raises ValueError, with the entry."""
    words = re.split(r"[\s,]+", text.strip(" ,\t"))
    if len(words) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} entries")
    return tuple(_entry(word) for word in words if word)


def exactly(identity: str) -> Peers:
    """This name@domain, from every host."""
    return Peers(identity, re.compile(re.escape(identity)), None)


def _entry(word: str) -> Peers:
    user, host = _split(word)
    if _USER.fullmatch(user) is None:
        raise ValueError(f"{word}: a user is written name@domain")
    pattern = ".*".join(map(re.escape, user.split("*")))
    return Peers(word, re.compile(pattern, re.DOTALL), _networks(host, word))


def _split(word: str) -> tuple[str, str]:
    """User and host. One slash may also stand within a network."""
    before, slash, after = word.partition("/")
    if not slash:
        return (word, "*") if "@" in word else ("*", word)
    if "@" in before or before == "*":
        return before, after
    return "*", word


def _networks(host: str, word: str) -> tuple[Network, ...] | None:
    if host == "*":
        return None
    if host.lower() == "localhost":
        return _LOOPBACK
    if wild := _WILD.fullmatch(host):
        parts = wild[1].rstrip(".").split(".")
        host = ".".join([*parts, *["0"] * (4 - len(parts))]) + f"/{8 * len(parts)}"
    try:
        return (ipaddress.ip_network(host.strip("[]"), strict=False),)
    except ValueError:
        raise ValueError(f"{word}: a host is an address, a network, localhost or *; other names are not used") from None


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
