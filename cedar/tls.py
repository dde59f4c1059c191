"""TLS contexts for SSL authentication, made of files: who is trusted, and what is shown.

A context is made anew when one of its files has changed, so that renewed certificates are used without a restart.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from attrs import define, field, frozen

from cedar.security import MethodFailed

# Of a key that other accounts can read nobody knows who has it.
_OTHERS = stat.S_IROTH | stat.S_IWOTH


@frozen
class TlsFiles:
    """Where trust and identity are; each may be missing.

    ca_file, ca_dir: certificates of authorities (the directory by subject hash); default_authorities: those of the
    system count too. cert_file, key_file: PEM; they may be the same file, as for a proxy.
    """

    ca_file: Path | None = None
    ca_dir: Path | None = None
    default_authorities: bool = True
    cert_file: Path | None = None
    key_file: Path | None = None


@define(eq=False)
class ClientTls:
    """A client's side. ``check_host``: the server's certificate must be of the host that was asked for."""

    files: TlsFiles
    check_host: bool = True
    _kept: _Kept = field(factory=lambda: _Kept())

    def context(self) -> ssl.SSLContext:
        """Raises MethodFailed when a file cannot be used."""
        return self._kept.context(self.files, self._make)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_host
        return context


@define(eq=False)
class ServerTls:
    """A server's side; clients may come without a certificate, and are nobody then.

    ``allow_proxy``: a client's certificate may be a proxy (RFC 3820).
    """

    files: TlsFiles
    allow_proxy: bool = False
    _kept: _Kept = field(factory=lambda: _Kept())

    def context(self) -> ssl.SSLContext:
        """Raises MethodFailed when a file cannot be used."""
        if self.files.cert_file is None or self.files.key_file is None:
            raise MethodFailed("this server has no certificate")
        return self._kept.context(self.files, self._make)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # no TLS session is ever resumed
        if self.allow_proxy:
            context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
        return context


@define(eq=False)
class _Kept:
    """The last context, for as long as its files are the same."""

    _state: object = None
    _context: ssl.SSLContext | None = None

    def context(self, files: TlsFiles, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        state = tuple(_state_of(path) for path in (files.ca_file, files.ca_dir, files.cert_file, files.key_file))
        if self._context is None or state != self._state:
            context = make()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            _load(context, files)
            self._context, self._state = context, state
        return self._context


def _state_of(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    trusted = files.ca_file or files.ca_dir
    try:
        if trusted is not None:
            context.load_verify_locations(files.ca_file, files.ca_dir)
        if files.default_authorities:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH if context.check_hostname else ssl.Purpose.CLIENT_AUTH)
    except (OSError, ssl.SSLError) as error:
        raise MethodFailed(f"the authorities in {trusted} cannot be read: {_reason(error)}") from error
    if files.cert_file is not None and files.key_file is not None:
        _load_identity(context, files.cert_file, files.key_file)


def _load_identity(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    try:
        if os.stat(key_file).st_mode & _OTHERS:
            raise MethodFailed(f"other accounts may read the key in {key_file}; make it 0600")
        # A key with a passphrase would be asked for at the terminal otherwise.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise MethodFailed(
            f"the certificate {cert_file} with the key {key_file} cannot be used: {_reason(error)}"
        ) from error


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error).replace("_", " ").lower()
