"""HTCondor's addresses: `<host:port?key=value&flag>`. Values in, values out."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from attrs import field, frozen

from cedar.errors import PeerFault

# Stock addresses with many interfaces and a broker stay below 1,000.
MAX_CHARS = 8_192
_TEXT = re.compile(r"<(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]*)):([0-9]{1,5})(?:\?([^<>\s]*))?>")
_UNENCODED = frozenset((string.ascii_letters + string.digits + "._-:#[]+").encode())


@frozen
class Sinful:
    """One address; a flag is a key with an empty value."""

    host: str
    port: int
    params: Mapping[str, str] = field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Sinful:
        """Raises PeerFault("address") on anything that is not one whole address."""
        found = _TEXT.fullmatch(text) if len(text) <= MAX_CHARS else None
        params = _parse_params(found[4] or "") if found else {}
        # A NUL (%00) could be in no string on the wire, and these come there again.
        if found is None or int(found[3]) > 65535 or any("\0" in word for pair in params.items() for word in pair):
            raise PeerFault("address", "not an address of the form <host:port?...>")
        return cls(found[1] or found[2], int(found[3]), params)

    @property
    def sock(self) -> str | None:
        """The daemon behind a shared port, or None."""
        return self.params.get("sock")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        pairs = sorted(self.params.items())
        params = "&".join(_encode(key) + (f"={_encode(value)}" if value else "") for key, value in pairs)
        return f"<{host}:{self.port}{'?' if params else ''}{params}>"


_SEPARATORS = re.compile("[&;]")


def _parse_params(text: str) -> dict[str, str]:
    params = {}
    for part in _SEPARATORS.split(text):
        key, _, value = part.partition("=")
        if key:
            params[_decode(key)] = _decode(value)
    return params


def _decode(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _encode(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _UNENCODED else f"%{byte:02x}" for byte in raw)
