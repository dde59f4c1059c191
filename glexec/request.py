"""What the caller asks for, from its environment, and the payload's environment. Pure."""

from glexec.codes import CLIENT, Failure

# Ours alone: where the caller's switch steers from, and what is reserved for an epilogue.
_NOT_PASSED = (b"GLEXEC_CONTROL_FD",)
_NOT_PASSED_PREFIX = b"GLEXEC_EPILOG_"
_PREFIX = b"GLEXEC_"
_MODES = ("", "lcmaps_get_account")
_PAYLOAD_PATH = b"/usr/local/bin:/usr/bin:/bin"
NO_COPY = "/dev/null"  # as GLEXEC_TARGET_PROXY: leave no copy behind


class Request:
    """One call, as its caller put it."""

    def __init__(self, certificate: str, source: str, target: "str | None", command: "list[str]") -> None:
        self.certificate = certificate
        self.source = source
        self.target = target  # None: the default place
        self.command = command


def understand(environ: "dict[str, str]", command: "list[str]") -> Request:
    """The request; Failure(201) when a variable is missing, empty or not offered."""
    if environ.get("GLEXEC_MODE", "") not in _MODES:
        raise Failure(CLIENT, "GLEXEC_MODE: only lcmaps_get_account is offered")
    certificate = environ.get("GLEXEC_CLIENT_CERT")
    if certificate is None:
        raise Failure(CLIENT, "GLEXEC_CLIENT_CERT is not set")
    source = environ.get("GLEXEC_SOURCE_PROXY", certificate)
    target = environ.get("GLEXEC_TARGET_PROXY")
    for name, value in (
        ("GLEXEC_CLIENT_CERT", certificate),
        ("GLEXEC_SOURCE_PROXY", source),
        ("GLEXEC_TARGET_PROXY", target),
    ):
        if value == "":
            raise Failure(CLIENT, "%s is empty" % name)
    return Request(certificate, source, target, command)


def copy_place(request: Request, uid: int) -> "str | None":
    """Where the payload's copy of the proxy goes; None: nowhere."""
    if request.target == NO_COPY:
        return None
    return request.target or "/tmp/x509up_u%d" % uid


def payload_environment(
    environ: "dict[bytes, bytes]", kept: "list[str]", name: str, home: str, proxy: "str | None"
) -> "dict[bytes, bytes]":
    """Only GLEXEC_* and the white list of the caller's; the account's own on top."""
    listed = {item.encode("utf-8", "surrogateescape") for item in kept}
    result = {
        key: value
        for key, value in environ.items()
        if key in listed
        or (key.startswith(_PREFIX) and key not in _NOT_PASSED and not key.startswith(_NOT_PASSED_PREFIX))
    }
    account = {"HOME": home, "USER": name, "LOGNAME": name}
    result.update((key.encode(), value.encode("utf-8", "surrogateescape")) for key, value in account.items())
    result[b"PATH"] = _PAYLOAD_PATH
    result.pop(b"X509_USER_PROXY", None)
    if proxy is not None:
        result[b"X509_USER_PROXY"] = proxy.encode("utf-8", "surrogateescape")
    return result
