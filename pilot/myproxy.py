"""A client of MyProxy (protocol version 2): get a proxy with a passphrase, as a trusted retriever, or by showing the
old one; and ask what is stored. Blocks: for a thread.

A passphrase is a parameter, goes over TLS, and nowhere else: not on a command line, into the environment, a log or a
file. The key of a new proxy is made here. Nothing that a server sends is believed without a limit.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pilot import credentials
from pilot import credentials_der as der
from pilot.credentials import CredentialError, PendingRequest
from pilot.credentials_names import old_slash_form, slash_form
from pilot.credentials_parse import MAX_CHAIN, PrivateKey, load_key, parse_pem

PORT: Final = 7512
# A busy server makes a key of its own for each request.
DEADLINE_S: Final = 60.0
# The longest answer is a list of a user's credentials.
MAX_TEXT_BYTES: Final = 64 * 1024
MAX_CHAIN_BYTES: Final = 256 * 1024
_RECORD: Final = 16 * 1024
_VERSION: Final = "MYPROXYv2"
_GET, _INFO = 0, 2
_OK, _ERROR, _AUTHORISATION = "0", "1", "2"
# author_method_t of the protocol: password, certificate.
_BY_CERTIFICATE: Final = 2
# GSI's word that no delegation follows the handshake.
_NO_DELEGATION: Final = b"0"
_SERVICES: Final = ("host/", "myproxy/")

Code = Literal["unreachable", "server", "refused", "broken"]


class MyProxyError(Exception):
    """No proxy. `code`: "unreachable" (try again), "server" (not who it should be), "refused" (its policy, the name or
    the passphrase), "broken" (its words make no sense, or what it gave is no good)."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code: Code = code
        self.text = text


@attrs.frozen
class Server:
    """Where, and by which name of its certificate; without one: its host name, bare or as host/NAME or myproxy/NAME."""

    host: str
    port: int = PORT
    subject: str = ""

    @classmethod
    def parse(cls, text: str, subject: str = "") -> Server:
        """`host` or `host:port`; ValueError for anything else."""
        host, _, port = text.partition(":")
        if not host or any(c.isspace() or c in "/@[]" for c in host) or not (port or str(PORT)).isdecimal():
            raise ValueError(f"{text!r} is not a MyProxy server: host or host:port")
        return cls(host, int(port or PORT), subject)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@attrs.frozen
class Client:
    """Who asks: a credential with its key (None: nobody, which is enough with a passphrase), and whom we believe."""

    certificates_dir: Path
    pem: bytes | None = attrs.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """For people: identity and primary FQAN."""
        if self.pem is None:
            return "a client without a certificate"
        found = credentials.load(self.pem)
        return found.identity + (f" ({found.fqans[0]})" if found.fqans else "")


@attrs.frozen
class Stored:
    """What INFO says of one stored credential."""

    name: str
    owner: str
    starts_at: float
    expires_at: float
    retrievers: str = ""
    renewers: str = ""


def logon(
    server: Server,
    client: Client,
    username: str,
    *,
    passphrase: str = "",
    old_pem: bytes | None = None,
    name: str = "",
    lifetime_s: float = 12 * 3600.0,
    key: Literal["ec", "rsa"] = "ec",
    deadline_s: float = DEADLINE_S,
) -> bytes:
    """A new proxy, as PEM with its key.

    Args:
        username: as the credential was stored.
        passphrase: of the stored credential; empty for trusted retrievers and for renewal.
        old_pem: renewal: the proxy that is to be renewed, which proves whose it is; must not have ended.
        name: of the credential, if the user has several.
        lifetime_s: the server may give less.

    Raises:
        MyProxyError
    """
    request = {
        "VERSION": _VERSION,
        "COMMAND": _GET,
        "USERNAME": username,
        "PASSPHRASE": passphrase,
        "LIFETIME": int(lifetime_s),
        **({"CRED_NAME": name} if name else {}),
    }
    with _session(server, client, deadline_s) as session:
        session.ask(request)
        answer = session.answer()
        if answer["RESPONSE"] == _AUTHORISATION:
            if old_pem is None:
                raise session.refusal(username, "it asks for a passphrase, or for the proxy that is to be renewed")
            session.send(_authorisation(answer, old_pem))
            answer = session.answer()
        session.expect_ok(answer, username)
        pending = credentials.make_request(key)
        session.send(pending.der)
        return _complete(session, pending, username)


def info(
    server: Server, client: Client, username: str, *, passphrase: str = "", deadline_s: float = DEADLINE_S
) -> list[Stored]:
    """What is stored under a name, as far as the server tells it to this client. Raises MyProxyError."""
    request = {
        "VERSION": _VERSION,
        "COMMAND": _INFO,
        "USERNAME": username,
        "PASSPHRASE": passphrase or "PASSPHRASE",
        "LIFETIME": 0,
    }
    with _session(server, client, deadline_s) as session:
        session.ask(request)
        answer = session.answer()
        session.expect_ok(answer, username)
        names = ["", *(name for name in answer.get("ADDL_CREDS", "").split(",") if name)]
        return [_stored(answer, name) for name in names if name or "CRED_END_TIME" in answer]


def _stored(answer: Mapping[str, str], name: str) -> Stored:
    prefix = f"CRED_{name}_" if name else "CRED_"

    def word(key: str) -> str:
        return answer.get(prefix + key, "")

    try:
        starts, ends = float(word("START_TIME") or 0), float(word("END_TIME") or 0)
    except ValueError:
        raise MyProxyError("broken", "the MyProxy server gives a time that is none") from None
    return Stored(name or word("NAME"), word("OWNER"), starts, ends, word("RETRIEVER"), word("RENEWER"))


# --- one connection ----------------------------------------------------------------------------------------------


@attrs.define
class _Session:
    server: Server
    client: Client
    stream: ssl.SSLSocket
    end_s: float

    def send(self, data: bytes) -> None:
        self.stream.settimeout(self._left_s())
        self.stream.sendall(data)

    def ask(self, request: Mapping[str, object]) -> None:
        lines = [f"{key}={value}" for key, value in request.items()]
        if any("\n" in line or "\0" in line for line in lines):
            raise MyProxyError("broken", "a name or passphrase for MyProxy has a line's end in it")
        self.send(("\n".join(lines) + "\n\0").encode())

    def some(self) -> bytes:
        """What comes next, at least one byte."""
        self.stream.settimeout(self._left_s())
        data = self.stream.recv(_RECORD)
        if not data:
            raise MyProxyError("unreachable", f"the MyProxy server {self.server} closed the connection")
        return data

    def answer(self) -> dict[str, str]:
        """One text, up to its NUL; a NUL alone is nothing."""
        data = b""
        while not data.endswith(b"\0"):
            data = (data + self.some()).lstrip(b"\0")
            if len(data) > MAX_TEXT_BYTES:
                raise MyProxyError("broken", f"the MyProxy server {self.server} says more than {MAX_TEXT_BYTES} bytes")
        words: dict[str, str] = {}
        for line in data.rstrip(b"\0").decode("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            words[key] = f"{words[key]} {value}" if key in words else value
        if words.get("VERSION") != _VERSION or words.get("RESPONSE") not in (_OK, _ERROR, _AUTHORISATION):
            raise MyProxyError("broken", f"what answers at {self.server} is not a MyProxy server of version 2")
        return words

    def expect_ok(self, answer: Mapping[str, str], username: str) -> None:
        if answer["RESPONSE"] != _OK:
            raise self.refusal(username, answer.get("ERROR", "it gives no reason"))

    def refusal(self, username: str, words: str) -> MyProxyError:
        said = " ".join("".join(c if c.isprintable() else " " for c in words[:500]).split())
        return MyProxyError(
            "refused",
            f"The MyProxy server {self.server} gives no proxy of '{username}' to {self.client.name}: {said}. Is it"
            " stored there, not expired, and does its policy (and the server's) name this identity or FQAN as a"
            " retriever or renewer? To change it, store it again (myproxy-init -R, -Z).",
        )

    def _left_s(self) -> float:
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


@contextlib.contextmanager
def _session(server: Server, client: Client, deadline_s: float) -> Iterator[_Session]:
    """A connection to a server whose certificate was verified."""
    try:
        with (
            socket.create_connection((server.host, server.port), timeout=deadline_s) as plain,
            _context(client).wrap_socket(plain, server_hostname=server.host) as stream,
        ):
            _check_server(server, stream)
            stream.sendall(_NO_DELEGATION)
            yield _Session(server, client, stream, time.monotonic() + deadline_s)
    except ssl.SSLCertVerificationError as error:
        raise MyProxyError(
            "server", f"the certificate of the MyProxy server {server} is not valid here: {error.verify_message}"
        ) from None
    except TimeoutError:
        raise MyProxyError("unreachable", f"the MyProxy server {server} did not answer in {deadline_s:g} s") from None
    except (ssl.SSLError, OSError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise MyProxyError("unreachable", f"no connection to the MyProxy server {server}: {reason or error}") from None


def _context(client: Client) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # grids put the service's name in front of the host's: see _check_server
    context.load_verify_locations(capath=str(client.certificates_dir))
    if client.pem is None:
        return context
    # The library reads keys from files only: one in memory, which ends with this descriptor.
    memory = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(client.pem)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    except ssl.SSLError:
        raise MyProxyError("broken", "our own credential for the MyProxy server cannot be used") from None
    finally:
        os.close(memory)
    return context


def _check_server(server: Server, stream: ssl.SSLSocket) -> None:
    raw = stream.getpeercert(binary_form=True)
    assert raw is not None  # verified, so there is one
    certificate = x509.load_der_x509_certificate(raw)
    subject = certificate.subject
    if server.subject:
        names = {slash_form(subject), old_slash_form(subject)}
        good = server.subject in names
    else:
        common = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        names = {str(common[-1].value)} if common else set()
        with contextlib.suppress(x509.ExtensionNotFound):
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names |= set(alternative.get_values_for_type(x509.DNSName))
        wanted = {server.host.lower(), *(service + server.host.lower() for service in _SERVICES)}
        good = any(name.lower() in wanted for name in names)
    if not good:
        raise MyProxyError(
            "server",
            f"what answers at {server} is {slash_form(subject)}, not {server.subject or server.host}: nothing was sent",
        )


# --- renewal, and the new proxy ------------------------------------------------------------------------------------


def _authorisation(answer: Mapping[str, str], old_pem: bytes) -> bytes:
    """The old proxy's key signs the challenge; its chain follows (protocol: 4 bytes of method, the signature with its
    length, the number of certificates, they)."""
    offered = answer.get("AUTHORIZATION_DATA", "")
    challenge = next((word[17:] for word in offered.split() if word.startswith("X509_certificate:")), "")
    if not challenge:
        raise MyProxyError("refused", "the MyProxy server does not accept an old proxy as a proof")
    try:
        chain = parse_pem(old_pem)
        signature = _sign(load_key(chain), challenge.encode())
    except CredentialError as error:
        raise MyProxyError("broken", f"the proxy that is to be renewed cannot be used: {error}") from None
    certificates = [link.certificate.public_bytes(serialization.Encoding.DER) for link in chain.links]
    head = bytes((_BY_CERTIFICATE, 0, 0, 0)) + struct.pack(">I", len(signature)) + signature
    return head + bytes((len(certificates),)) + b"".join(certificates)


def _sign(key: PrivateKey, data: bytes) -> bytes:
    """SHA-1 is the protocol's; what is signed is a fresh challenge."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA1())
    return key.sign(data, ec.ECDSA(hashes.SHA1()))


def _complete(session: _Session, pending: PendingRequest, username: str) -> bytes:
    """One byte: how many certificates; they, DER back to back; and a last word."""
    data = session.some()
    if data.startswith(b"VERSION="):  # a refusal in the place of certificates
        raise session.refusal(username, data.decode("utf-8", "replace").partition("ERROR=")[2].strip("\n\0"))
    count = data[0]
    while (end := _end_of(data, count)) is None:
        data += session.some()
        if len(data) > MAX_CHAIN_BYTES:
            raise MyProxyError("broken", f"the MyProxy server {session.server} sends more than a chain")
    try:
        pem = pending.complete(data[1:end])
    except CredentialError as error:
        raise MyProxyError("broken", f"what the MyProxy server {session.server} gave is no good: {error}") from None
    return pem


def _end_of(data: bytes, count: int) -> int | None:
    """Where the certificates end; None if they are not all here yet."""
    if not 0 < count <= MAX_CHAIN:
        raise MyProxyError("broken", f"the MyProxy server sends {count} certificates")
    offset = 1
    for _ in range(count):
        try:
            offset = der.read(data, offset).end
        except der.DerError:
            return None
    return offset
