"""The site's decision in a child: credential in; account numbers, a typed failure, or a deadline out.

LCMAPS decides (`glexec.lcmaps`), or what this package has in its place (`glexec.native`). In a child, because a
bad policy makes the library abort its process, and because it talks to whatever the site's plugins
talk to. An abort, a hang or nonsense is the site's trouble (202), never "denied": only an orderly no is
that. Here is the parent's side and the frame of the child's.
"""

import os

from glexec import signals
from glexec.codes import CLIENT, DENIED, INTERNAL, Failure
from glexec.descriptors import close_all_but

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

    from glexec.conf import Settings
    from glexec.credential import Credential

_MEMORY_BYTES = 2 << 30  # library, plugins and Globus map about 300 MiB
_OPEN_FILES = 256
_LIMIT_REPLY_BYTES = 64 << 10
_KEPT_CHATTER_BYTES = 4 << 10
_LIMIT_CHAT_CHARS = 2000
_VOMS = bytes.fromhex("060a2b06010401be45646405")  # the extension's object identifier, as it stands in a certificate
_PR_SET_PDEATHSIG = 1
_END = b"\n"  # of an answer: without it the child has died in the middle
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


class Decider:
    """The child. It is there before there is a question: it loads its libraries while its parent finds out whether the
    caller may ask at all."""

    def __init__(self) -> None:
        question, self._question = os.pipe()
        self._reply, reply = os.pipe()
        self._chatter, chatter = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for fd in (self._question, self._reply, self._chatter):
                    os.close(fd)
                _child(question, reply, chatter)
            finally:
                os._exit(1)
        for fd in (question, reply, chatter):
            os.close(fd)

    @property
    def fds(self) -> "set[int]":
        """Descriptors that it needs."""
        return {self._question, self._reply, self._chatter}

    def decide(self, pem: bytes, settings: "Settings", policy_text: str, meanwhile: "Callable[[], None]") -> Mapping:
        """Ask the site's policy; Refusal carries 201, 202 or 203. Blocks up to the settings' deadline.

        `meanwhile` is called once while the child works. `leave` is still to be called.
        """
        import marshal
        import time

        until_s = time.monotonic() + settings.lcmaps_timeout_s
        _tell(self._question, marshal.dumps((pem, policy_text, vars(settings))), until_s)
        os.close(self._question)
        meanwhile()
        reply, chatter, in_time = _collect(self._reply, self._chatter, until_s)
        os.close(self._reply)
        os.close(self._chatter)
        whole = reply.endswith(_END)
        # The end of a process that has answered takes a millisecond, which is better used.
        status = 0 if whole else self._end(kill=not in_time)
        mapping = understand(reply[: -len(_END)] if whole else b"", chatter, status, in_time)
        if mapping.lease:
            _require_own_lease(mapping, policy_text)
        return mapping

    def leave(self) -> None:
        """Have it gone; without an answer at once."""
        if self._pid:
            self._end(kill=True)

    def _end(self, kill: bool) -> int:
        """Its wait status."""
        if kill:
            os.kill(self._pid, signals.SIGKILL)
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        return status


def _require_own_lease(mapping: Mapping, policy_text: str) -> None:
    """LCMAPS gives people whose DNs differ in case one lease. Here, because its child may have left root's rights."""
    from glexec import gridmapdir, policy

    try:
        for directory in policy.lease_directories(policy_text):
            gridmapdir.require_owner(directory, mapping.lease, mapping.dn)
    except gridmapdir.Refused as refused:
        raise Refusal(refused.code, refused.text, mapping.dn, refused.details) from None


def _tell(fd: int, data: bytes, until_s: float) -> None:
    """Write it all, or as much as is read in time. If the reader has ended, its status says why."""
    import select
    import time

    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    os.set_blocking(fd, False)
    try:
        while data and poller.poll(max(0.0, until_s - time.monotonic()) * 1000):
            data = data[os.write(fd, data) :]
    except OSError:
        return


def _read_all(fd: int) -> bytes:
    pieces = []  # type: list[bytes]
    while True:
        piece = os.read(fd, 65536)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _collect(reply_end: int, chatter_end: int, until_s: float) -> "tuple[bytes, bytes, bool]":
    """Both pipes up to their ends (limited), and whether these came before the deadline."""
    import select
    import time

    texts = {reply_end: b"", chatter_end: b""}
    limits = {reply_end: _LIMIT_REPLY_BYTES, chatter_end: _KEPT_CHATTER_BYTES}
    poller = select.poll()
    for fd in texts:
        poller.register(fd, select.POLLIN)
    waiting = set(texts)
    while waiting:
        left_s = until_s - time.monotonic()
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


def _child(question: int, reply: int, chatter: int) -> None:
    """Load, wait for the question, map and answer; ends the process. Anything unforeseen is exit 1 without an answer:
    202."""
    import marshal

    _settle_in(question, reply, chatter)
    library = _library()
    from glexec import chains, credential, policy  # noqa: F401  (now, while there is time)
    from glexec.conf import Settings

    text = _read_all(question)
    if not text:  # there is no question
        os._exit(0)
    pem, policy_text, values = marshal.loads(text)  # of our own parent, who is as much root as this
    settings = Settings()
    vars(settings).update(values)
    _limit_cpu(settings.lcmaps_timeout_s)
    fields = _mapped_or_failed(library, pem, settings, policy_text)
    os.write(reply, "\0".join(fields).encode("utf-8", "replace") + _END)
    os.close(reply)
    os.close(2)
    os._exit(0)


def _settle_in(question: int, reply: int, chatter: int) -> None:
    """Hold these descriptors only, the chatter as standard error, and be confined."""
    signals.fresh()
    _confine()
    null = os.open("/dev/null", os.O_RDWR)
    for source, std in ((null, 0), (null, 1), (chatter, 2)):
        os.dup2(source, std)
    close_all_but({0, 1, 2, question, reply})


def _mapped_or_failed(library: object, pem: bytes, settings: "Settings", policy_text: str) -> "list[str]":
    """The fields of the answer, as `understand` reads them."""
    from glexec import credential

    dn = ""
    try:
        holder = credential.read(pem)
        dn = holder.dn
        if _is_native(library, settings):
            return ["mapped", dn, *_ask_native(holder, settings, policy_text)]
        return ["mapped", dn, *_ask_lcmaps(library, pem, holder, settings, policy_text)]
    except Failure as failure:
        _chat(getattr(failure, "details", ""))
        return ["failed", str(failure.code), failure.text, dn]
    except (OSError, AttributeError) as error:  # ctypes: no such library, no such function
        _chat(str(error))
        return ["failed", str(INTERNAL), "the mapping library cannot be loaded", dn]


def _chat(text: str) -> None:
    """Words for the site's log."""
    if text:
        os.write(2, (text[:_LIMIT_CHAT_CHARS] + "\n").encode("utf-8", "replace"))


def _library() -> "tuple[object, object] | OSError":
    """LCMAPS, or why it is not there."""
    from glexec import lcmaps

    try:
        return lcmaps.load()
    except OSError as error:
        return error


def _is_native(library: object, settings: "Settings") -> bool:
    """Whether the settings, or a node without LCMAPS, leave it to this package."""
    from glexec.conf import LCMAPS, NATIVE

    if settings.decided_by == LCMAPS and isinstance(library, OSError):
        raise library
    return settings.decided_by == NATIVE or isinstance(library, OSError)


def _ask_lcmaps(
    library: object, pem: bytes, holder: "Credential", settings: "Settings", policy_text: str
) -> "list[str]":
    from glexec import chains, lcmaps, policy
    from glexec.conf import LCMAPS

    assert isinstance(library, tuple)
    directory = settings.certificates_dir or policy.certificates_dir(policy_text)
    chains.require_sites_files(holder.crypto, holder.chain, directory)
    fqans = _genuine_fqans(holder, settings, directory)
    _environment(settings, lcmaps.file_with(policy_text))
    uid, gids, secondary, lease = lcmaps.mapped(library, pem)
    return [*_numbered(uid, gids, secondary), LCMAPS, lease, *fqans]


def _genuine_fqans(holder: "Credential", settings: "Settings", directory: str) -> "list[str]":
    """LCMAPS passes over a forged attribute certificate where no FQAN is asked for; refused here, as everywhere."""
    for number in range(holder.owner + 1):
        if _VOMS in holder.der(number):
            from glexec import voms

            return voms.verified(holder, directory, settings.voms_dir)
    return []


def _ask_native(holder: "Credential", settings: "Settings", policy_text: str) -> "list[str]":
    from glexec import native
    from glexec.conf import NATIVE

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


def _confine() -> None:
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signals.SIGKILL, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        _lower(limit, value)


def _limit_cpu(timeout_s: int) -> None:
    import resource

    _lower(resource.RLIMIT_CPU, timeout_s + 1)


def _lower(limit: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _environment(settings: "Settings", policy_file: str) -> None:
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
