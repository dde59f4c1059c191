"""The site's decision in a child: credential in; account numbers, a typed failure, or a deadline out.

LCMAPS decides (`glexec.lcmaps`), or what this package has in its place (`glexec.native`). In a child, because a
bad policy makes the library abort its process, and because it talks to whatever the site's plugins
talk to. An abort, a hang or nonsense is the site's trouble (202), never "denied": only an orderly no is
that. Here is the parent's side and the frame of the child's.
"""

import os
import select
import time

from glexec import signals
from glexec.codes import CLIENT, DENIED, INTERNAL, Failure
from glexec.conf import LCMAPS, NATIVE, Settings

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

    from glexec.credential import Credential

_MEMORY_BYTES = 2 << 30  # library, plugins and Globus map about 300 MiB
_OPEN_FILES = 256
_LIMIT_REPLY_BYTES = 64 << 10
_KEPT_CHATTER_BYTES = 4 << 10
_LIMIT_WORDS = 2000
_VOMS = bytes.fromhex("060a2b06010401be45646405")  # the extension's object identifier, as it stands in a certificate
_PR_SET_PDEATHSIG = 1
# What the library says when it did not get as far as deciding (LCMAPS 1.6.6, debug level >= 1).
_NOT_DECIDED = (b"initialization", b"syntax error", b"out of memory", b"error opening", b"Failed to load")


class Mapping:
    """The yes. `by`: who decided, lcmaps or native; `lease`: the name of a pool account's lease, or empty."""

    def __init__(self, dn: str, uid: int, gids: "list[int]", secondary: "list[int]") -> None:
        self.dn = dn
        self.uid = uid
        self.gids = gids
        self.secondary = secondary
        self.by = ""
        self.lease = ""
        self.fqans = []  # type: list[str]


class Refusal(Failure):
    """Anything else: with the DN as far as it is known and the library's own words for the log."""

    def __init__(self, code: int, text: str, dn: str = "", details: str = "") -> None:
        super().__init__(code, text)
        self.dn = dn
        self.details = details


def decide(pem: bytes, settings: Settings, policy_text: str, meanwhile: "Callable[[], None]") -> Mapping:
    """Ask the site's policy; Refusal carries 201, 202 or 203. Blocks up to the settings' deadline.

    `meanwhile` is called once while the child works.
    """
    import ctypes  # noqa: F401  (2 ms: here once for the child and for a lingering parent)

    reply_end, reply_child = os.pipe()
    chatter_end, chatter_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reply_end)
            os.close(chatter_end)
            _child(pem, settings, policy_text, reply_child, chatter_child)
        finally:
            os._exit(1)
    os.close(reply_child)
    os.close(chatter_child)
    meanwhile()
    reply, chatter, in_time = _collect(reply_end, chatter_end, settings.lcmaps_timeout_s)
    if not in_time:
        os.kill(pid, signals.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reply_end)
    os.close(chatter_end)
    return understand(reply, chatter, status, in_time)


def _collect(reply_end: int, chatter_end: int, timeout_s: float) -> "tuple[bytes, bytes, bool]":
    """Both pipes up to their ends (limited), and whether these came before the deadline."""
    until = time.monotonic() + timeout_s
    texts = {reply_end: b"", chatter_end: b""}
    limits = {reply_end: _LIMIT_REPLY_BYTES, chatter_end: _KEPT_CHATTER_BYTES}
    poller = select.poll()
    for fd in texts:
        poller.register(fd, select.POLLIN)
    waiting = set(texts)
    while reply_end in waiting or waiting:
        left_s = until - time.monotonic()
        if left_s <= 0:
            return texts[reply_end], texts[chatter_end], False
        for fd, _ in poller.poll(left_s * 1000):
            data = os.read(fd, 65536)
            texts[fd] = (texts[fd] + data)[-limits[fd] :]
            if not data:
                poller.unregister(fd)
                waiting.discard(fd)
    return texts[reply_end], texts[chatter_end], True


def understand(reply: bytes, chatter: bytes, status: int, in_time: bool) -> Mapping:
    """The child's end as a mapping or a Refusal. Pure."""
    details = chatter.decode("utf-8", "replace").strip()
    if not in_time:
        raise Refusal(INTERNAL, "the mapping library gave no answer in time", details=details)
    if os.WIFSIGNALED(status):
        text = "the mapping library died by signal %d (broken policy?)" % os.WTERMSIG(status)
        raise Refusal(INTERNAL, text, details=details)
    fields = reply.decode("utf-8", "replace").split("\0")
    if status == 0 and fields[0] == "mapped" and len(fields) >= 7:
        try:
            mapping = Mapping(fields[1], int(fields[2]), _numbers(fields[3]), _numbers(fields[4]))
            mapping.by, mapping.lease, mapping.fqans = fields[5], fields[6], fields[7:]
            return mapping
        except ValueError:
            pass  # nonsense, as below
    if status == 0 and fields[0] == "failed" and len(fields) == 4 and fields[1].isdigit():
        code = int(fields[1])
        if code == DENIED and any(words in chatter for words in _NOT_DECIDED):
            raise Refusal(INTERNAL, "the mapping library could not decide", fields[3], details)
        if code in (CLIENT, INTERNAL, DENIED):
            raise Refusal(code, fields[2], fields[3], details if code != CLIENT else "")
    raise Refusal(INTERNAL, "the mapping library ended without an answer", details=details)


def _numbers(text: str) -> "list[int]":
    return [int(item) for item in text.split(",") if item]


# What follows runs in the child.


def _child(pem: bytes, settings: Settings, policy_text: str, reply: int, chatter: int) -> None:
    """Map and answer; ends the process. Anything unforeseen is exit 1 without an answer: 202."""
    signals.fresh()
    _confine(settings.lcmaps_timeout_s)
    null = os.open("/dev/null", os.O_RDWR)
    for source, std in ((null, 0), (null, 1), (chatter, 2)):
        os.dup2(source, std)
    dn = ""
    try:
        library = _library(settings)
        from glexec import credential

        holder = credential.read(pem)
        dn = holder.dn
        if library is None:
            fields = _ask_native(holder, settings, policy_text)
        else:
            fields = _ask_lcmaps(library, pem, holder, settings, policy_text)
        fields = ["mapped", dn, *fields]
    except Failure as failure:
        _chat(getattr(failure, "details", ""))
        fields = ["failed", str(failure.code), failure.text, dn]
    except (OSError, AttributeError) as error:  # ctypes: no such library, no such function
        _chat(str(error))
        fields = ["failed", str(INTERNAL), "the mapping library cannot be loaded", dn]
    os.write(reply, "\0".join(fields).encode("utf-8", "replace"))
    os._exit(0)


def _chat(text: str) -> None:
    """Words for the site's log."""
    if text:
        os.write(2, (text[:_LIMIT_WORDS] + "\n").encode("utf-8", "replace"))


def _library(settings: Settings) -> "tuple[object, object] | None":
    """LCMAPS; None where the settings, or a node without it, leave it to this package."""
    if settings.decided_by == NATIVE:
        return None
    from glexec import lcmaps

    try:
        return lcmaps.load()
    except OSError:
        if settings.decided_by == LCMAPS:
            raise
        return None


def _ask_lcmaps(
    library: "tuple[object, object]", pem: bytes, holder: "Credential", settings: Settings, policy_text: str
) -> "list[str]":
    from glexec import lcmaps, policy

    fqans = _genuine_fqans(holder, settings, policy_text)
    _environment(settings, lcmaps.file_with(policy_text))
    uid, gids, secondary, lease = lcmaps.mapped(library, pem)
    directories = policy.lease_directories(policy_text) if lease else []
    if directories:
        from glexec import gridmapdir

        for directory in directories:
            gridmapdir.require_owner(directory, lease, holder.dn)
    return [*_numbered(uid, gids, secondary), LCMAPS, lease, *fqans]


def _genuine_fqans(holder: "Credential", settings: Settings, policy_text: str) -> "list[str]":
    """LCMAPS passes over a forged attribute certificate where no FQAN is asked for; refused here, as everywhere."""
    for number in range(holder.owner + 1):
        if _VOMS in holder.der(number):
            from glexec import policy, voms

            directory = settings.certificates_dir or policy.certificates_dir(policy_text)
            return voms.verified(holder, directory, settings.voms_dir)
    return []


def _ask_native(holder: "Credential", settings: Settings, policy_text: str) -> "list[str]":
    from glexec import native

    session = native.Session(holder, settings.certificates_dir, settings.voms_dir)
    try:
        native.decide(policy_text, settings.policy, session)
    finally:
        _chat("; ".join(session.said))
    assert session.uid is not None
    fields = _numbered(session.uid, session.gids, session.secondary)
    return [*fields, NATIVE, session.lease, *(session.fqans or [])]


def _numbered(uid: int, gids: "list[int]", secondary: "list[int]") -> "list[str]":
    return [str(uid), ",".join(map(str, gids)), ",".join(map(str, secondary))]


def _confine(timeout_s: int) -> None:
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signals.SIGKILL, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, timeout_s + 1),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _environment(settings: Settings, policy_file: str) -> None:
    """What the library reads, and nothing else of the caller's but the pilot's proxy (call-outs)."""
    pilot = os.environ.get("X509_USER_PROXY")
    os.environ.clear()
    os.environ.update(
        PATH="/usr/sbin:/usr/bin:/sbin:/bin",
        LCMAPS_DB_FILE=policy_file,
        LCMAPS_POLICY_NAME=settings.policy,
        LCMAPS_DEBUG_LEVEL=str(settings.lcmaps_debug_level),
        LCMAPS_LOG_FILE=settings.lcmaps_log_file or "/proc/self/fd/2",
        X509_VOMS_DIR=settings.voms_dir,
    )
    if settings.certificates_dir:
        os.environ["X509_CERT_DIR"] = settings.certificates_dir
    if pilot:
        os.environ["X509_USER_PROXY"] = pilot
