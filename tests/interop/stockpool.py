"""A private pool of a stock HTCondor's master, collector, negotiator and schedd, inside a throw-away site.

It listens on 127.0.0.1 only, runs its daemons at the site's pool account, and is gone with the site. The prefix is an
installed HTCondor's; nothing in it is changed.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from demo import leftovers
from demo.daemons import switched
from demo.layout import DOMAIN
from demo.site import Site, User
from tests.joblist import COMMANDS_ALLOWED

VARIABLE = "SAILPLANE_HTCONDOR"
NEEDED = (
    "sbin/condor_master",
    "sbin/condor_schedd",
    "sbin/condor_shadow",
    "sbin/condor_collector",
    "bin/condor_submit",
)
UP_S, DOWN_S = 40.0, 20.0
# Far from the default of the whole machine, so that nothing of another HTCondor here is met by accident.
_CONFIGURATION = """\
RELEASE_DIR = {prefix}
LIB = $(RELEASE_DIR)/lib
LIBEXEC = $(RELEASE_DIR)/libexec
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LOCAL_DIR = {here}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
RUN = $(LOCAL_DIR)/run
LOCK = $(LOCAL_DIR)/lock
DAEMON_SOCKET_DIR = $(LOCAL_DIR)/sock
LOCAL_CONFIG_DIR = {here}/config.d
USER_CONFIG_FILE =
CONDOR_IDS = {uid}.{gid}
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
COLLECTOR_PORT = {port}
COLLECTOR_HOST = 127.0.0.1:{port}
NO_DNS = True
DEFAULT_DOMAIN_NAME = {domain}
NETWORK_HOSTNAME = stock.{domain}
CONDOR_DEVELOPERS = NONE
CONDOR_DEVELOPERS_COLLECTOR = NONE
CONDOR_ADMIN =
MAIL = /bin/true
use SECURITY:recommended
TRUST_DOMAIN = {domain}
UID_DOMAIN = {domain}
FILESYSTEM_DOMAIN = {domain}
TRUST_UID_DOMAIN = True
SEC_PASSWORD_DIRECTORY = {here}/passwords.d
SEC_TOKEN_SYSTEM_DIRECTORY = {here}/tokens.d
SEC_CREDENTIAL_DIRECTORY_OAUTH = {here}/oauth
TRUST_CREDENTIAL_DIRECTORY = True
ALLOW_ADMINISTRATOR = $(ALLOW_ADMINISTRATOR) {account}@*
ALLOW_DAEMON = $(ALLOW_DAEMON) {account}@*
ALLOW_NEGOTIATOR = $(ALLOW_NEGOTIATOR) {account}@*
ALLOW_ADVERTISE_STARTD = $(ALLOW_DAEMON) pilot@*
ALLOW_ADVERTISE_MASTER = $(ALLOW_DAEMON) pilot@*
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD SHARED_PORT
# The master, run as root, would otherwise change the kernel's settings for the whole machine.
ENABLE_KERNEL_TUNING = False
PREEN =
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
SHADOW_QUEUE_UPDATE_INTERVAL = 3
PERIODIC_EXPR_INTERVAL = 3
SHADOW_CHECKPROXY_INTERVAL = 1
SHADOW_DEBUG = D_FULLDEBUG D_SECURITY D_COMMAND D_SYSCALLS D_PID D_SUB_SECOND
SCHEDD_DEBUG = D_FULLDEBUG D_COMMAND D_PID D_SUB_SECOND
STARTER_DEBUG = $(SHADOW_DEBUG)
DEFAULT_USERLOG_FORMAT_OPTIONS = ISO_DATE, SUB_SECOND
"""
# A stock execution point beside ours, in the same pool: the same size, the same times.
STOCK_STARTD = "stockside"
STOCK_CPUS = 3
_STARTD = f"""\
DAEMON_LIST = $(DAEMON_LIST) STARTD
STARTD_NAME = {STOCK_STARTD}
NUM_CPUS = {STOCK_CPUS}
MEMORY = {1024 * STOCK_CPUS}
DISK = 4000000
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
MOUNT_UNDER_SCRATCH =
STARTD_ENFORCE_DISK_LIMITS = False
CGROUP_MEMORY_LIMIT_POLICY = none
BASE_CGROUP =
USE_PID_NAMESPACES = False
STARTER_INITIAL_UPDATE_INTERVAL = 1
STARTER_UPDATE_INTERVAL = 2
MACHINEMAXVACATETIME = 3
KILLING_TIMEOUT = 10
BENCHMARKS_JOBLIST =
POLLING_INTERVAL = 1
use POLICY : HOLD_IF_MEMORY_EXCEEDED
STARTER_ALLOW_JOB_PRE_AND_POST_CMD = {COMMANDS_ALLOWED}
STARTD_CRON_JOBLIST =
"""


class StockError(Exception):
    """A stock tool refused or a daemon did not come up; the text has its words."""


def why_not() -> str:
    """Why the tests against a stock HTCondor cannot run here; empty if they can."""
    prefix = os.environ.get(VARIABLE)
    if not prefix:
        return f"no stock HTCondor: set {VARIABLE} to the prefix of an installed one (with bin/ and sbin/)"
    missing = [name for name in NEEDED if not Path(prefix, name).exists()]
    if missing:
        return f"{VARIABLE}={prefix} is no installed HTCondor: {', '.join(missing)} missing"
    if os.geteuid() != 0:
        return "needs root: a stock schedd runs its shadows at the users' accounts"
    return ""


@attrs.define(eq=False)
class StockPool:
    """A running stock pool; made by ``open_pool``."""

    site: Site
    prefix: Path
    here: Path
    port: int
    master: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of the daemons and of the tools."""
        path = f"{self.prefix}/bin:{self.prefix}/sbin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {
            "PATH": path,
            "LANG": "C.UTF-8",
            "CONDOR_CONFIG": str(self.here / "condor_config"),
            "XDG_CACHE_HOME": str(self.site.layout.root / "cache"),  # of the keys of tokens' issuers
            leftovers.VARIABLE: str(self.site.layout.root),
        }

    # --- the daemons ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Until the schedd is in the collector."""
        with (self.here / "master.out").open("wb") as output:
            self.master = subprocess.Popen(
                [str(self.prefix / "sbin/condor_master"), "-f"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment, cwd=self.here,
                start_new_session=True, umask=0o022,
            )  # fmt: skip
        self.site.wait_until(self._schedd_is_in, what="the stock schedd", deadline_s=UP_S, look_s=0.2)

    def _schedd_is_in(self) -> bool | None:
        if self.master is None or self.master.poll() is not None:
            raise StockError(f"condor_master ended: {self.log('MasterLog')[-3000:]}")
        return bool(self.tool("condor_status", "-schedd", "-af", "Name", check=False).strip()) or None

    def stop(self) -> None:
        """Fast; what is left after DOWN_S is killed."""
        if self.master is None:
            return
        self.master.send_signal(signal.SIGQUIT)
        try:
            self.master.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            self.master.kill()
            self.master.wait()
        self.master = None
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, name: str = "condor_") -> list[int]:
        """Pids of this pool's own daemons and shadows."""
        found = leftovers.processes_in(self.site.layout.root)
        return [pid for pid, comm in found.items() if comm.startswith(name)]

    # --- tools ---------------------------------------------------------------------------------------------------

    def tool(
        self, *argv: str, user: User | None = None, check: bool = True, deadline_s: float = 60.0, typed: str = ""
    ) -> str:
        """Output of a stock tool as root (the pool's administrator) or as a user in the user's directory.

        Raises:
            StockError: it failed, unless ``check`` is False.
        """
        done = subprocess.run(
            argv,
            input=typed, capture_output=True, text=True, errors="replace", env=self.environment,
            cwd=user.home if user else "/", umask=0o022, timeout=deadline_s, check=False,
            **switched(user.account if user else None),
        )  # fmt: skip
        if check and done.returncode != 0:
            raise StockError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def log(self, name: str) -> str:
        """The text of a stock daemon's log so far."""
        path = self.here / "log" / name
        return path.read_text(errors="replace") if path.exists() else ""

    def introduce(self, user: User) -> None:
        """A user's first submission: a schedd of 25.14 cannot read the proxy of somebody whom it does not know yet."""
        assert user.account is not None
        lines = ("executable = /bin/true", "hold = true", "queue")
        first = user.home / "introduction.sub"
        first.write_text("".join(f"{line}\n" for line in lines))
        cluster = self.tool("condor_submit", "-terse", str(first), user=user).partition(".")[0]
        self.tool("condor_rm", cluster)
        first.unlink()

    def pilot_token(self) -> bytes:
        """A token that may advertise execution points, and nothing more."""
        identity = f"pilot@{DOMAIN}"
        return self.tool("condor_token_create", "-key", "POOL", "-identity", identity).encode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make(site: Site, prefix: Path, more: str) -> StockPool:
    here, owner, port = site.layout.root / "stock", site.accounts["pool"], _free_port()
    here.mkdir(mode=0o755)
    for name in ("log", "spool", "execute", "run", "lock", "sock"):
        (here / name).mkdir(mode=0o755)
        os.chown(here / name, owner.uid, owner.gid)
    for name in ("config.d", "passwords.d", "tokens.d"):
        (here / name).mkdir(mode=0o755 if name == "config.d" else 0o700)
    key = here / "passwords.d" / "POOL"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_hex(32).encode())
    (here / "condor_config").write_text(
        _CONFIGURATION.format(
            prefix=prefix, here=here, uid=owner.uid, gid=owner.gid, account=owner.name, port=port, domain=DOMAIN
        )
        + more
    )
    return StockPool(site, prefix, here, port)


@contextmanager
def open_pool(site: Site, prefix: Path, *, stock_startd: bool = False, more: str = "") -> Iterator[StockPool]:
    """A running stock pool in ``site``, where ``site.start_startd`` finds its address and token; stopped afterwards.

    ``stock_startd``: with an execution point of its own; ``more``: configuration besides.
    """
    pool = _make(site, prefix, (_STARTD if stock_startd else "") + more)
    try:
        pool.start()
        layout = site.layout
        layout.startd_token.parent.mkdir(parents=True)
        layout.collector_address.write_text(f"127.0.0.1:{pool.port}\n")
        layout.startd_token.write_bytes(pool.pilot_token())
        for user in site.users.values():
            pool.introduce(user)
        yield pool
    finally:
        pool.stop()
