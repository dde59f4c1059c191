"""File transfer plugins for URLs: which program is to fetch or send what, and what its answer means. Pure.

HTCondor's multi-file plugins: ``PLUGIN -infile FILE -outfile FILE [-upload]``; the first file has an ad for each URL,
the second gets an ad for each result. They are run in the sandbox at the job's account (``jobwrapper.plugins``), by the
calls of the switch that stage anyway, so their answers are a job's words.
"""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from classad2 import ClassAd

from cedar.classads import get_bool, get_int, get_str, parse_expression
from cedar.commands import HoldCode, HoldSubcode
from cedar.errors import PeerFault
from cedar.filetransfer import Ack
from pilot.farside import text_of
from starter.fileplan import FilePlan, scheme_of, shown
from starter.pluginwords import words_of

# An ad for each of so many URLs; what a plugin may write about them is limited at the far side.
MAX_URLS = 1000
# What a plugin may say that one file had; sums of it still fit into an ad.
MAX_TOLD_BYTES = 1 << 50
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]]|[^"\[\]]+|"', re.DOTALL)
# Hold subcodes of stock (execute-side reference 4.12): the exit code, shifted; ETIME for one that took too long. What
# is the node's fault is below -1000, and the job runs again; a plugin of the job's own is the job's fault.
TIMED_OUT = errno.ETIME
OWN_FAULT: Mapping[int, int] = {
    HoldSubcode.PLUGIN_EXEC_FAILED: errno.ENOEXEC,
    HoldSubcode.PLUGIN_NO_RESULT: errno.EPROTO,
}
TRANSFER_INPUT, TRANSFER_OUTPUT = 1, 2


@attrs.frozen
class Wish:
    """One file and the URL that it comes from or goes to."""

    name: str
    url: str = attrs.field(repr=False)


@attrs.frozen
class Order:
    """One run of a plugin."""

    program: str
    wishes: tuple[Wish, ...]
    infile: str = attrs.field(repr=False)
    upload: bool
    environment: Mapping[str, str] = attrs.field(repr=False)
    limit_s: float
    executable: str = ""
    brought: bool = False
    """The job's own program."""

    def as_sent(self) -> dict[str, Any]:
        """For the far side."""
        return {
            "program": self.program,
            "infile": self.infile,
            "upload": self.upload,
            "environment": dict(self.environment),
            "limit_s": self.limit_s,
            "executable": self.executable,
        }


@attrs.frozen
class Judged:
    """What came of one order: the failure if there is one, statistics as in an acknowledgement, ads for the queue,
    and the errors by file's name."""

    failure: Ack | None
    stats: Mapping[str, int | str]
    ads: tuple[ClassAd, ...]
    errors: Mapping[str, str]


class NoPlugin(Exception):
    """Nobody here can move this. ``subcode``: of the hold, or of another try elsewhere."""

    def __init__(self, text: str, subcode: int) -> None:
        super().__init__(text)
        self.subcode = subcode


@attrs.frozen
class Plugins:
    """What a job has for its URLs: the site's programs and its own, by scheme."""

    programs: Mapping[str, str]
    sandbox: str
    environment: Mapping[str, str] = attrs.field(repr=False)
    limit_s: float
    host: str
    of_job: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The job's own variables, of which each plugin gets those that are called after it."""

    def orders(self, wishes: Sequence[Wish], *, upload: bool, executable: str = "") -> list[Order]:
        """One for each program; what it fetches as `executable` can be run then. Raises NoPlugin."""
        if len(wishes) > MAX_URLS:
            raise NoPlugin(f"{len(wishes)} URLs, at most {MAX_URLS} are moved for one job", errno.E2BIG)
        by_program: dict[str, list[Wish]] = {}
        for wish in wishes:
            by_program.setdefault(self._program(wish.url), []).append(wish)
        return [
            Order(
                program,
                tuple(own),
                self._infile(own),
                upload,
                {**self.environment, **_called_after(program, self.of_job)},
                self.limit_s,
                executable if any(wish.name == executable for wish in own) else "",
                brought=program.startswith(f"{self.sandbox}/"),
            )
            for program, own in by_program.items()
        ]

    def _program(self, url: str) -> str:
        program = self.programs.get(scheme_of(url))
        if program is None:
            known = ", ".join(sorted(self.programs)) or "none"
            text = f"{shown(url)}: no file transfer plugin for such URLs on {self.host} (there are: {known})"
            raise NoPlugin(text, HoldSubcode.PLUGIN_NOT_FOUND)
        return program

    def _infile(self, wishes: Sequence[Wish]) -> str:
        return "".join(
            f"[ LocalFileName = {_quoted(posixpath.join(self.sandbox, wish.name))}; Url = {_quoted(wish.url)} ]\n"
            for wish in wishes
        )


def _called_after(program: str, variables: Mapping[str, str]) -> dict[str, str]:
    """As in stock: CURL_... for curl_plugin, however it is spelled; nothing that describes this node."""
    base = posixpath.basename(program)
    prefix = (base.partition("_plugin")[0] if "_plugin" in base else posixpath.splitext(base)[0]).lower() + "_"
    own = {name: value for name, value in variables.items() if name.lower().startswith(prefix)}
    return {name: value for name, value in own.items() if not name.startswith(("_CONDOR_", "X509_USER_PROXY"))}


def _quoted(text: str) -> str:
    """A string of an ad as the library writes it; names may have bytes that are no text, which it refuses."""
    return '"' + "".join(map(_character, text.encode("utf-8", "surrogateescape"))) + '"'


def _character(byte: int) -> str:
    plain = chr(byte)
    if plain in '"\\':
        return f"\\{plain}"
    return plain if " " <= plain <= "~" else f"\\{byte:03o}"


def programs_of(site: Mapping[str, str], plan: FilePlan, sandbox: str) -> dict[str, str]:
    """The site's programs, and before them those that the job brings along: these lie in its sandbox."""
    own = {scheme: posixpath.join(sandbox, posixpath.basename(name)) for scheme, name in plan.plugins.items()}
    return {**site, **own}


def judge(order: Order, answer: Any, host: str) -> Judged:
    """What the far side says of one run."""
    said = answer if isinstance(answer, dict) else {}
    found = [_read(ad) for ad in read_ads(str(said.get("result", "")))]
    trouble, number = _trouble(said)
    if not found and (number == 0 or (number > 0xFF and not order.brought)):  # ended, without a word about any URL
        number = HoldSubcode.PLUGIN_NO_RESULT
    silent = _Result(False, trouble or "the plugin did not say what became of it")
    results = {wish.name: _of(wish, found) or silent for wish in order.wishes}
    errors = {name: result.error for name, result in results.items() if not result.success}
    if trouble and not errors:
        errors = dict.fromkeys(results, trouble)
    return Judged(
        failure=_failure(order, errors, number, host) if errors else None,
        stats=_stats(result for result in results.values() if result.success and not trouble),
        ads=(_invocation(order, said), *(_result_ad(order, wish, results[wish.name]) for wish in order.wishes)),
        errors=errors,
    )


@attrs.frozen
class _Result:
    success: bool
    error: str
    url: str = ""
    path: str = ""
    bytes: int = 0
    protocol: str = ""
    words: ClassAd = attrs.field(factory=ClassAd)


def _read(ad: ClassAd) -> _Result:
    try:
        success, told = get_bool(ad, "TransferSuccess"), get_int(ad, "TransferTotalBytes", 0)
        error = text_of(get_str(ad, "TransferError", ""))
    except PeerFault:
        success, told, error = False, 0, "the plugin's answer does not say whether it worked, or how much it moved"
    return _Result(
        success,
        error or ("" if success else "the plugin gives no reason"),
        get_str(ad, "TransferUrl", ""),
        get_str(ad, "TransferFileName", ""),
        min(max(0, told), MAX_TOLD_BYTES),
        get_str(ad, "TransferProtocol", ""),
        words_of(ad),
    )


def _of(wish: Wish, found: Sequence[_Result]) -> _Result | None:
    """The answer about one wish: by its URL, or else by its file's name, or as the only one without either."""
    base = posixpath.basename(wish.name) if len(found) > 1 or (found[:1] and found[0].path) else ""
    for result in found:
        if result.url == wish.url or (not result.url and posixpath.basename(result.path) == base):
            return attrs.evolve(result, protocol=scheme_of(wish.url))
    return None


def _trouble(said: Mapping[str, Any]) -> tuple[str, int]:
    """What went wrong with the run itself, and the hold's subcode."""
    if said.get("timed_out") is True:
        return "the plugin took too long and was killed", TIMED_OUT
    failed, status = said.get("failed"), said.get("status")
    if isinstance(failed, dict):
        return f"the plugin could not be run: {text_of(failed.get('text'))}", HoldSubcode.PLUGIN_EXEC_FAILED
    if not isinstance(status, int):
        return "the plugin's end is not known", HoldSubcode.PLUGIN_NO_RESULT
    words = f": {text_of(said.get('said'))}" if said.get("said") else ""
    if status & 0x7F:
        return f"the plugin was killed by signal {status & 0x7F}{words}", status & 0x7F
    code = status >> 8 & 0xFF
    return (f"the plugin ended with exit code {code}{words}", code << 8) if code else ("", 0)


def _failure(order: Order, errors: Mapping[str, str], number: int, host: str) -> Ack:
    name, why = next(iter(errors.items()))
    url = next(wish.url for wish in order.wishes if wish.name == name)
    verb = "send" if order.upload else "fetch"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    program = posixpath.basename(order.program)
    reason = f"{program} on {host} could not {verb} {shown(url)}{more}: |Error: {why}|"
    code = HoldCode.UPLOAD_FILE_ERROR if order.upload else HoldCode.DOWNLOAD_FILE_ERROR
    subcode = OWN_FAULT.get(number, number) if order.brought else number
    return Ack(ok=False, hold_code=code, hold_subcode=int(subcode), reason=reason)


def _stats(results: Any) -> dict[str, int | str]:
    stats: dict[str, int | str] = {}
    for result in results:
        stem = re.sub(r"[^A-Z0-9]", "_", result.protocol.upper())  # part of an attribute's name
        stats[f"{stem}FilesCount"] = int(stats.get(f"{stem}FilesCount", 0)) + 1
        stats[f"{stem}SizeBytes"] = int(stats.get(f"{stem}SizeBytes", 0)) + result.bytes
    return stats


def _invocation(order: Order, said: Mapping[str, Any]) -> ClassAd:
    """As stock's, at the head of the list of results."""
    status = said.get("status")
    trouble, _ = _trouble(said)
    ad = ClassAd()
    ad["TransferClass"] = TRANSFER_OUTPUT if order.upload else TRANSFER_INPUT
    ad["PluginBasename"] = text_of(posixpath.basename(order.program))
    ad["Schemes"] = ",".join(sorted({scheme_of(wish.url) for wish in order.wishes}))
    ad["Result"] = 3 if said.get("timed_out") else 1 if trouble else 0
    if isinstance(status, int):
        ad["ExitBySignal"] = bool(status & 0x7F)
        ad["ExitSignal" if status & 0x7F else "ExitCode"] = status & 0x7F or status >> 8 & 0xFF
    return ad


def _result_ad(order: Order, wish: Wish, result: _Result) -> ClassAd:
    ad = ClassAd()
    ad.update(result.words)
    ad["TransferType"] = "upload" if order.upload else "download"
    ad["TransferProtocol"] = scheme_of(wish.url)
    ad["TransferUrl"] = shown(wish.url)
    ad["TransferFileName"] = text_of(posixpath.basename(wish.name))
    ad["TransferSuccess"] = result.success
    ad["TransferTotalBytes"] = result.bytes
    if not result.success:
        ad["TransferError"] = result.error
    return ad


def read_ads(text: str) -> list[ClassAd]:
    """Ads in new syntax, one after the other, out of hostile text; what is none is left out."""
    found: list[ClassAd] = []
    depth, start = 0, 0
    for piece in _PIECES.finditer(text):
        if piece[0] == "[":
            start = piece.start() if depth == 0 else start
            depth += 1
        elif piece[0] == "]" and depth:
            depth -= 1
            if depth == 0 and len(found) < MAX_URLS and (ad := _ad(text[start : piece.end()])) is not None:
                found.append(ad)
    return found


def _ad(text: str) -> ClassAd | None:
    try:
        value = parse_expression(text).eval()
    except (PeerFault, ValueError, RuntimeError):
        return None
    return value if isinstance(value, ClassAd) else None
