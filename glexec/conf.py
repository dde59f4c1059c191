"""glexec.conf: the text turned into settings, or a refusal. Reads no file.

The keys and their spelling are those of the contract (1.4); what this tool has no use for is
accepted and ignored, what nobody knows is a warning in the log.
"""

from glexec.codes import INTERNAL, Failure

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_SECTION = "glexec"
# Accepted, and without effect here. docs/site.md says why, key by key.
_IGNORED = (
    "omission_private_key_white_list",
    "log_level",
    "lcmaps_log_level",
    "lcmaps_verify_account_policy",
    "lcas_db_file",
    "lcas_log_file",
    "lcas_debug_level",
    "lcas_log_level",
)
LCMAPS, NATIVE, AUTO = "lcmaps", "native", "auto"
FLOCK, FCNTL, DISABLED = "flock", "fcntl", "disabled"
_LOCKS = (FLOCK, FCNTL, DISABLED)
_FACILITIES = {"LOG_LOCAL%d" % number: (16 + number) << 3 for number in range(8)}
_FACILITIES.update(LOG_USER=1 << 3, LOG_DAEMON=3 << 3, LOG_AUTH=4 << 3, LOG_AUTHPRIV=10 << 3)
# Names that no administrator may let through: they steer the C library of every program.
_NEVER_KEPT = ("LD_", "MALLOC_")
# A mapping library that waits for a dead server is given up after this; the job's own patience
# with a switch call (tens of seconds) must be longer.
_LCMAPS_TIMEOUT_S = 30


class Settings:
    """What the site's administrator decided."""

    def __init__(self) -> None:
        self.linger = True
        self.log_only = False  # authorise and log the mapping, run the payload as the caller
        self.callers = []  # type: list[str]
        self.kept_variables = []  # type: list[str]
        self.create_target_proxy = True
        self.input_lock = FLOCK
        self.target_lock = FLOCK
        self.is_silent = False
        self.log_destination = "file"
        self.log_file = ""
        self.syslog_facility = _FACILITIES["LOG_AUTHPRIV"]
        self.decided_by = AUTO
        self.certificates_dir = ""  # empty: the one that the policy names
        self.voms_dir = "/etc/grid-security/vomsdir"
        self.db_file = ""
        self.policy = ""
        self.lcmaps_log_file = ""
        self.lcmaps_debug_level = 2
        self.lcmaps_timeout_s = _LCMAPS_TIMEOUT_S
        self.epilogue = ""
        self.epilogue_user = "root"
        self.epilogue_group = ""
        self.epilogue_timeout_s = 300
        self.warnings = []  # type: list[str]


def parse(data: bytes) -> Settings:
    """Settings from the file's bytes; Failure(202) names the line or key that is wrong."""
    settings = Settings()
    for key, value in _pairs(data, settings.warnings):
        reader = _READERS.get(key)
        if reader is not None:
            reader(settings, key, value)
        elif key not in _IGNORED:
            settings.warnings.append("unknown key %s" % key[:64])
    for key, found in (
        ("log_file", settings.log_file or settings.log_destination == "syslog"),
        ("lcmaps_db_file", settings.db_file),
        ("lcmaps_get_account_policy", settings.policy),
    ):
        if not found:
            raise Failure(INTERNAL, "glexec.conf: %s is not set" % key)
    if settings.epilogue and not settings.linger:
        raise Failure(INTERNAL, "glexec.conf: an epilogue needs linger = yes")
    return settings


def _pairs(data: bytes, warnings: "list[str]") -> "list[tuple[str, str]]":
    """Key and value of every line in our section; other sections are a warning."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise Failure(INTERNAL, "glexec.conf: not a text file") from None
    pairs, section = [], ""
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            section = line[1:-1].strip()
            if section != _SECTION:
                warnings.append("unknown section %s" % section[:64])
            continue
        key, equals, value = line.partition("=")
        if not equals or not section or not key.strip():
            raise Failure(INTERNAL, "glexec.conf: line %d is neither a section nor key = value" % number)
        if section == _SECTION:
            pairs.append((key.strip(), value.strip().strip('"')))
    return pairs


def _words(value: str) -> "list[str]":
    return [item for item in (part.strip() for part in value.split(",")) if item]


def _switch(key: str, value: str) -> bool:
    if value not in ("yes", "no"):
        raise Failure(INTERNAL, "glexec.conf: %s is neither yes nor no" % key)
    return value == "yes"


def _path(key: str, value: str) -> str:
    if not value.startswith("/"):
        raise Failure(INTERNAL, "glexec.conf: %s is not an absolute path" % key)
    return value


def _number(key: str, value: str, low: int, high: int) -> int:
    if not value.isdecimal() or not low <= int(value) <= high:
        raise Failure(INTERNAL, "glexec.conf: %s is not a number from %d to %d" % (key, low, high))
    return int(value)


if TYPE_CHECKING:
    Reader = Callable[[Settings, str, str], None]


def _yes(name: str) -> "Reader":
    """A reader of yes or no."""

    def reader(settings: Settings, key: str, value: str) -> None:
        setattr(settings, name, _switch(key, value))

    return reader


def _one(name: str, *allowed: str) -> "Reader":
    """A reader of one word of a few."""

    def reader(settings: Settings, key: str, value: str) -> None:
        if value not in allowed:
            raise Failure(INTERNAL, "glexec.conf: %s is none of %s" % (key, ", ".join(allowed)))
        setattr(settings, name, value)

    return reader


def _place(name: str) -> "Reader":
    """A reader of an absolute path."""

    def reader(settings: Settings, key: str, value: str) -> None:
        setattr(settings, name, _path(key, value))

    return reader


def _from_to(name: str, low: int, high: int) -> "Reader":
    """A reader of a number."""

    def reader(settings: Settings, key: str, value: str) -> None:
        setattr(settings, name, _number(key, value, low, high))

    return reader


def _text(name: str) -> "Reader":
    """A reader of a name."""

    def reader(settings: Settings, key: str, value: str) -> None:
        setattr(settings, name, value)

    return reader


def _callers(settings: Settings, key: str, value: str) -> None:
    settings.callers = _words(value)


def _kept(settings: Settings, key: str, value: str) -> None:
    if value == "yes":
        raise Failure(INTERNAL, "glexec.conf: %s takes names or no; all of them is not offered" % key)
    for name in [] if value == "no" else _words(value):
        if name.startswith(_NEVER_KEPT):
            settings.warnings.append("%s is never preserved" % name[:64])
        else:
            settings.kept_variables.append(name)


def _facility(settings: Settings, key: str, value: str) -> None:
    if value not in _FACILITIES:
        raise Failure(INTERNAL, "glexec.conf: %s is none of %s" % (key, ", ".join(sorted(_FACILITIES))))
    settings.syslog_facility = _FACILITIES[value]


def _lcas(settings: Settings, key: str, value: str) -> None:
    """A site that counts on LCAS for its bans must not be told yes without it."""
    if _switch(key, value):
        raise Failure(INTERNAL, "glexec.conf: use_lcas = yes is not offered; use the bans of the LCMAPS db")


def _by(settings: Settings, key: str, value: str) -> None:
    """Both of the contract's words: the root part always changes the identity itself."""
    if value not in ("lcmaps", "glexec"):
        raise Failure(INTERNAL, "glexec.conf: %s is neither lcmaps nor glexec" % key)


_READERS = {
    "linger": _yes("linger"),
    "log_only": _yes("log_only"),
    "user_white_list": _callers,
    "preserve_env_variables": _kept,
    "user_identity_switch_by": _by,
    "use_lcas": _lcas,
    "create_target_proxy": _yes("create_target_proxy"),
    "input_lock_mechanism": _one("input_lock", *_LOCKS),
    "target_lock_mechanism": _one("target_lock", *_LOCKS),
    "lock_mechanism": _one("target_lock", *_LOCKS),
    "silent_logging": _yes("is_silent"),
    "log_destination": _one("log_destination", "file", "syslog"),
    "log_file": _place("log_file"),
    "syslog_facility": _facility,
    "decided_by": _one("decided_by", AUTO, LCMAPS, NATIVE),
    "certificates_dir": _place("certificates_dir"),
    "voms_dir": _place("voms_dir"),
    "lcmaps_db_file": _place("db_file"),
    "lcmaps_get_account_policy": _text("policy"),
    "lcmaps_log_file": _place("lcmaps_log_file"),
    "lcmaps_debug_level": _from_to("lcmaps_debug_level", 0, 5),
    "lcmaps_timeout": _from_to("lcmaps_timeout_s", 1, 600),
    "epilogue": _place("epilogue"),
    "epilogue_user": _text("epilogue_user"),
    "epilogue_group": _text("epilogue_group"),
    "epilogue_timeout": _from_to("epilogue_timeout_s", 1, 3600),
}  # type: dict[str, Reader]
