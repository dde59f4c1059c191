"""When what the pilot itself shows to site and pool ends: its proxy, its tokens. Their files may be renewed."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from cedar.tokens import load_tokens
from pilot import credentials
from pilot.credentials import CredentialError


@attrs.define
class OwnCredentials:
    """``ends_at`` looks at the files each time; a proxy that has not changed is not parsed again."""

    proxy: Path | None
    tokens_dir: Path
    _seen: tuple[int, int, int] | None = None
    _proxy_ends_at: float | None = None

    def ends_at(self) -> float | None:
        """Unix time at which the first of the two ends; None if neither does.

        Of several tokens the last counts. A proxy that cannot be read or parsed counts as what it was before: it may be
        just being replaced.
        """
        ends = [end for end in (self._proxy_end(), self._token_end()) if end is not None]
        return min(ends) if ends else None

    def _token_end(self) -> float | None:
        ends = [token.claims.expires_at for token in load_tokens(self.tokens_dir)]
        return None if not ends or None in ends else max(end for end in ends if end is not None)

    def _proxy_end(self) -> float | None:
        if self.proxy is None:
            return None
        try:
            found = os.stat(self.proxy)
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
            if state != self._seen and found.st_size <= credentials.MAX_PEM_BYTES:
                self._proxy_ends_at = credentials.load(self.proxy.read_bytes()).expires_at
                self._seen = state
        except (OSError, CredentialError):
            return self._proxy_ends_at
        return self._proxy_ends_at
