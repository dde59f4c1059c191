"""glexec.conf: the text turned into settings, or a refusal. Reads no file.

The keys and their spelling are those of the contract (1.4); what this tool has no use for is
accepted and ignored, what nobody knows is a warning in the log.
"""

from glexec.codes import INTERNAL, Failure

_SECTION = "glexec"
_IGNORED = (
    "user_identity_switch_by",
    "use_lcas",
    "target_lock_mechanism",
    "input_lock_mechanism",
    "lock_mechanism",
    "omission_private_key_white_list",
    "silent_logging",
    "log_destination",
    "log_level",
    "syslog_facility",
    "lcmaps_log_level",
    "lcmaps_verify_account_policy",
    "lcas_db_file",
    "lcas_log_file",
    "lcas_debug_level",
    "lcas_log_level",
    "epilogue",
    "epilogue_user",
    "epilogue_group",
    "epilogue_timeout",
)
# Names that no administrator may let through: they steer the C library of every program.
_NEVER_KEPT = ("LD_", "MALLOC_")
# A mapping library that waits for a dead server is given up after this; the job's own patience
# with a switch call (tens of seconds) must be longer.
_LCMAPS_TIMEOUT_S = 30


class Settings:
    """What the site's administrator decided."""

    def __init__(self) -> None:
        self.linger = True
        self.callers = []  # type: list[str]
        self.kept_variables = []  # type: list[str]
        self.create_target_proxy = True
        self.log_file = ""
        self.db_file = ""
        self.policy = ""
        self.lcmaps_log_file = ""
        self.lcmaps_debug_level = 2
        self.lcmaps_timeout_s = _LCMAPS_TIMEOUT_S
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
        ("log_file", settings.log_file),
        ("lcmaps_db_file", settings.db_file),
        ("lcmaps_get_account_policy", settings.policy),
    ):
        if not found:
            raise Failure(INTERNAL, "glexec.conf: %s is not set" % key)
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
    if not value.isdigit() or not low <= int(value) <= high:
        raise Failure(INTERNAL, "glexec.conf: %s is not a number from %d to %d" % (key, low, high))
    return int(value)


def _linger(settings: Settings, key: str, value: str) -> None:
    settings.linger = _switch(key, value)


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


def _create(settings: Settings, key: str, value: str) -> None:
    settings.create_target_proxy = _switch(key, value)


def _log_file(settings: Settings, key: str, value: str) -> None:
    settings.log_file = _path(key, value)


def _db_file(settings: Settings, key: str, value: str) -> None:
    settings.db_file = _path(key, value)


def _policy(settings: Settings, key: str, value: str) -> None:
    settings.policy = value


def _lcmaps_log(settings: Settings, key: str, value: str) -> None:
    settings.lcmaps_log_file = _path(key, value)


def _debug_level(settings: Settings, key: str, value: str) -> None:
    settings.lcmaps_debug_level = _number(key, value, 0, 5)


def _timeout(settings: Settings, key: str, value: str) -> None:
    settings.lcmaps_timeout_s = _number(key, value, 1, 600)


_READERS = {
    "linger": _linger,
    "user_white_list": _callers,
    "preserve_env_variables": _kept,
    "create_target_proxy": _create,
    "log_file": _log_file,
    "lcmaps_db_file": _db_file,
    "lcmaps_get_account_policy": _policy,
    "lcmaps_log_file": _lcmaps_log,
    "lcmaps_debug_level": _debug_level,
    "lcmaps_timeout": _timeout,
}
