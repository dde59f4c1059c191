"""What lies where in a site's directory, and the texts of its configuration files. Does no I/O.

DIR/                    0711, the maker's (root's, if root made it)
  sailplane-site.json   the marker, see demo.leftovers
  grid/certificates     the throw-away CA's certificates directory
  glexec/               the installed switch: root-owned copies, configuration, root log
  runtime/              copied packages, where the checkout is out of reach
  jobwrapper/           a copy of the wrapper, where sub-uids cannot reach the checkout
  logs/                 what daemons print
  pool/                 the pool's account: configuration, state, spool, log
  pilot/                the pilot's account: configuration, token, proxy, run, log, execute
  alice/, bob/          the users' accounts: proxy, submit files, fetched outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

# One domain for names and tokens, which belongs to nobody (RFC 2606).
DOMAIN = "sailplane.example"


@attrs.frozen
class Layout:
    """Paths of a site."""

    root: Path

    @property
    def certificates(self) -> Path:
        """The certificates directory that everything in the site trusts."""
        return self.grid / "certificates"

    @property
    def grid(self) -> Path:
        """Where the throw-away CA writes."""
        return self.root / "grid"

    @property
    def switch(self) -> Path:
        """Prefix of the installed glexec."""
        return self.root / "glexec"

    @property
    def runtime(self) -> Path:
        """Copied packages; not there when the checkout can be reached."""
        return self.root / "runtime"

    @property
    def wrapper(self) -> Path:
        """Copied wrapper; not there when the checkout can be reached."""
        return self.root / "jobwrapper"

    @property
    def logs(self) -> Path:
        """What daemons print."""
        return self.root / "logs"

    @property
    def execute(self) -> Path:
        """The sandboxes."""
        return self.pilot / "execute"

    @property
    def pool(self) -> Path:
        """The pool's directory."""
        return self.root / "pool"

    @property
    def pilot(self) -> Path:
        """The pilot's directory."""
        return self.root / "pilot"

    @property
    def pool_state(self) -> Path:
        """SAILPLANE_POOL_DIR."""
        return self.pool / "state"

    @property
    def pool_socket(self) -> Path:
        """Where users reach the pool."""
        return self.pool_state / "socket"

    @property
    def collector_address(self) -> Path:
        """Where the pool writes its address."""
        return self.pool_state / "collector_address"

    @property
    def startd_token(self) -> Path:
        """The token that the pool makes for startds."""
        return self.pool_state / "tokens.d" / "startd.token"

    @property
    def pilot_proxy(self) -> Path:
        """The pilot's own proxy."""
        return self.pilot / "proxy"

    @property
    def user_config(self) -> Path:
        """Configuration of the users' commands."""
        return self.root / "user.conf"

    def home(self, user: str) -> Path:
        """A user's directory."""
        return self.root / user


def text(values: Mapping[str, object]) -> str:
    """A configuration file."""
    return "".join(f"{name} = {value}\n" for name, value in values.items())


def common(layout: Layout) -> dict[str, object]:
    """What every process of the site is told."""
    return {
        "TRUST_DOMAIN": DOMAIN,
        "UID_DOMAIN": DOMAIN,
        "NETWORK_INTERFACE": "127.0.0.1",
        "SAILPLANE_CERTIFICATES_DIR": layout.certificates,
        "SAILPLANE_POOL_DIR": layout.pool_state,
        "SAILPLANE_POOL_SOCKET": layout.pool_socket,
    }


def pool_values(layout: Layout, *, owner_from_proxy: bool) -> dict[str, object]:
    """The pool's configuration."""
    return {
        **common(layout),
        "LOCAL_DIR": layout.pool,
        "SAILPLANE_POOL_OWNER_FROM_PROXY": owner_from_proxy,
    }


def startd_values(
    layout: Layout, *, collector: str, switch: Path | None, wrapper: Path | None = None
) -> dict[str, object]:
    """The startd's configuration; `switch` is the installed glexec, else `wrapper` is what sub-uids run.

    With neither there is no switch.
    """
    return {
        **common(layout),
        "LOCAL_DIR": layout.pilot,
        "EXECUTE": layout.execute,
        "COLLECTOR_HOST": collector,
        "STARTD_NAME": "demo",
        "NUM_CPUS": 4,
        "MEMORY": 4096,
        "DISK": 4 << 20,
        "SAILPLANE_PILOT_PROXY": layout.pilot_proxy,
        **_switch_values(switch, wrapper),
    }


def _switch_values(switch: Path | None, wrapper: Path | None) -> dict[str, object]:
    if switch is not None:
        return {"SAILPLANE_SWITCH": "glexec", "GLEXEC": switch}
    if wrapper is not None:
        return {"SAILPLANE_SWITCH": "userns", "SAILPLANE_WRAPPER_DIR": wrapper}
    return {"SAILPLANE_SWITCH": "none", "SAILPLANE_SHARED_ACCOUNT": True}
