"""What a job's ad says about its files beyond their names: paths, success, limits, URLs, streams. Pure.

The rules are those of a stock starter (seen in 25.14): what it does, not what its manual says.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping

import attrs
from classad2 import ClassAd

from cedar.classads import get_bool, get_int, get_str

MB = 1024 * 1024
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.+-]{0,63})://")


@attrs.frozen
class FilePlan:
    """How a job's files travel.

    Attributes:
        preserve_paths: names keep their directories (preserve_relative_paths).
        success: the wait status of a job that succeeded; of another only standard streams and `failure_names` are
            sent. None: all is sent whatever the status.
        max_input_bytes, max_output_bytes: None where the job says nothing.
        plugins: programs that the job brings along for URLs, by scheme.
        urls: URLs that output goes to, by name in the sandbox (transfer_output_remaps).
        destination: URL that all output goes to (output_destination), or "".
        stream_stdout, stream_stderr: what the job writes goes to the submit side while it runs.
    """

    preserve_paths: bool = False
    success: int | None = None
    failure_names: tuple[str, ...] = ()
    max_input_bytes: int | None = None
    max_output_bytes: int | None = None
    plugins: Mapping[str, str] = attrs.field(factory=dict)
    urls: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    destination: str = attrs.field(default="", repr=False)
    stream_stdout: bool = False
    stream_stderr: bool = False

    @property
    def plugin_names(self) -> frozenset[str]:
        """Names in the sandbox of the programs that the job brings along."""
        return frozenset(posixpath.basename(program) for program in self.plugins.values())

    def failed(self, wait_status: int) -> bool:
        """Whether a job that ended so has failed, as far as its files are concerned."""
        return self.success is not None and wait_status != self.success


def plan_files(ad: ClassAd) -> FilePlan:
    """Read the ad. Raises ValueError or PeerFault for a value that cannot be used."""
    remaps = pairs(get_str(ad, "TransferOutputRemaps", ""), ";")
    return FilePlan(
        preserve_paths=get_bool(ad, "PreserveRelativePaths", False),
        success=_success(ad),
        failure_names=tuple(name.strip() for name in get_str(ad, "FailureFiles", "").split(",") if name.strip()),
        max_input_bytes=_limit(ad, "MaxTransferInputMB"),
        max_output_bytes=_limit(ad, "MaxTransferOutputMB"),
        plugins=_plugins(get_str(ad, "TransferPlugins", "")),
        urls={name: target for name, target in remaps.items() if scheme_of(target)},
        destination=get_str(ad, "OutputDestination", ""),
        stream_stdout=get_bool(ad, "StreamOut", False),
        stream_stderr=get_bool(ad, "StreamErr", False),
    )


def scheme_of(text: str) -> str:
    """The scheme of a URL, in lower case; "" for what is none."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


def shown(url: str) -> str:
    """A URL without what may be secret: user, password, query, fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    text = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def pairs(text: str, separator: str) -> dict[str, str]:
    r"""``name=value;name=value``; a backslash takes the meaning from the next character. Of a name the first counts."""
    found: dict[str, str] = {}
    for part in _split(text, separator):
        name, *value = _split(part, "=", most=1)
        if value:
            found.setdefault(_plain(name), _plain(value[0]))
    return found


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    parts, escaped = [""], False
    for char in text:
        if char == separator and not escaped and most != 0:
            parts.append("")
            most -= 1
            continue
        escaped = char == "\\" and not escaped
        parts[-1] += char
    return parts


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text.strip(), flags=re.DOTALL)


def _plugins(text: str) -> dict[str, str]:
    """``TAR=my_plugin; HTTP,HTTPS=other`` -> scheme: program; the last for a scheme counts, as in stock."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        schemes, equals, program = part.partition("=")
        if equals and program.strip():
            found |= {scheme.strip().lower(): program.strip() for scheme in schemes.split(",") if scheme.strip()}
    return found


def _success(ad: ClassAd) -> int | None:
    """``success_exit_code`` or its signal. ON_SUCCESS without one says nothing to a stock starter: all is sent."""
    if get_bool(ad, "JobSuccessExitBySignal", False):
        number = get_int(ad, "JobSuccessExitSignal", int(signal.SIGTERM))
        if not 0 < number < signal.NSIG:
            raise ValueError(f"JobSuccessExitSignal is {number}, which is no signal of this system")
        return number
    if "JobSuccessExitCode" in ad:
        return (get_int(ad, "JobSuccessExitCode") & 0xFF) << 8
    return None


def _limit(ad: ClassAd, name: str) -> int | None:
    limit_mb = get_int(ad, name, -1)
    return limit_mb * MB if 0 <= limit_mb < 1 << 40 else None
