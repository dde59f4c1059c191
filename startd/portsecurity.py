"""Who is known at the startd's port, and how: the server's policy, made of the settings."""

from __future__ import annotations

import logging
import os
import pwd
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from cedar import tokens
from cedar.security_server import Caller, SslSide
from cedar.server import ServerPolicy
from cedar.tls import ServerTls, TlsFiles
from pilot import certificatemap
from pilot.certificatemap import BadMap, CertificateMap
from pilot.credentials_parse import CredentialError, make_chain
from pilot.settings import Settings
from startd.authorisation import Rules

# Known to a method, to nobody here: may look where everybody may.
UNMAPPED = "ssl@unmapped"
_PREFERENCE = ("FS", "TOKEN", "SSL")
# Certificates that the log tells of: whoever has one can show it again and again.
MAX_TOLD = 100


def policy(settings: Settings, rules: Callable[[], Rules], log: logging.LoggerAdapter[logging.Logger]) -> ServerPolicy:
    """`rules` is asked at each new session."""

    def authorise(caller: Caller, level: str) -> bool:
        return rules().permits(level, caller.identity, caller.host)

    certificate = settings.auth_ssl_server_certfile
    return ServerPolicy(
        signing_keys_dir=settings.sec_password_directory,
        pool_key_file=settings.sec_token_pool_signing_key_file,
        trust_domain=settings.trust_domain,
        methods=_methods(settings),
        authorise=authorise,
        ssl=None if certificate is None else _ssl(settings, certificate, log),
    )


def own_names(settings: Settings, of_master: Iterable[str] = ()) -> tuple[str, ...]:
    """This account, root and the master's accounts, as FS knows them; of an account without a name nobody has this
    one."""
    uid = os.geteuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:
        account = str(uid)
    return tuple(f"{name}@{settings.trust_domain}" for name in sorted({account, "root", *of_master}))


def _methods(settings: Settings) -> tuple[str, ...]:
    """Those that can be offered. Not SCITOKENS: it would take the keys of the tokens' issuers."""
    keys = tokens.load_signing_keys(settings.sec_password_directory, settings.sec_token_pool_signing_key_file)
    there = {"FS": True, "TOKEN": bool(keys), "SSL": settings.auth_ssl_server_certfile is not None}
    wanted = settings.sec_default_authentication_methods or _PREFERENCE
    return tuple(name for name in wanted if there.get(name, False))


def _ssl(settings: Settings, certificate: Path, log: logging.LoggerAdapter[logging.Logger]) -> SslSide:
    files = TlsFiles(
        settings.auth_ssl_server_cafile,
        settings.auth_ssl_server_cadir,
        settings.auth_ssl_server_use_default_cas,
        certificate,
        settings.auth_ssl_server_keyfile or certificate,
    )
    tls = ServerTls(files, settings.auth_ssl_allow_client_proxy)
    names = Names(settings.certificate_mapfile, settings.certificate_mapfile_assume_hash_keys, settings.uid_domain, log)
    return SslSide(tls.context, names.identity, settings.auth_ssl_require_client_certificate)


@attrs.define
class Names:
    """The map of certificates' names; read anew when its file has changed."""

    file: Path | None
    assume_hash_keys: bool
    domain: str
    log: logging.LoggerAdapter[logging.Logger]
    _state: tuple[int, int, int] | None = None
    _map: CertificateMap = attrs.field(factory=CertificateMap)
    _told: set[str] = attrs.field(factory=set)

    def identity(self, chain: tuple[bytes, ...]) -> str:
        """Whose a verified chain is, as name@domain: by the certificate below all proxies."""
        try:
            name = make_chain(list(chain), None).owner.name
        except CredentialError as fault:
            self._tell(f"a client's certificate is of no use: {fault}")
            return UNMAPPED
        self._look()
        user = self._map.user("SSL", name)
        if user is None:
            self._tell(f"the certificate of {name[:500]} is of nobody in CERTIFICATE_MAPFILE")
            return UNMAPPED
        return user if "@" in user else f"{user}@{self.domain}"

    def _tell(self, words: str, level: int = logging.INFO) -> None:
        """Each once, and not too many."""
        if words not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(words)
            self.log.log(level, "%s", words)

    def _look(self) -> None:
        """A map that cannot be used knows nobody."""
        if self.file is None:
            return
        try:
            about = self.file.stat()
            state = (about.st_ino, about.st_size, about.st_mtime_ns)
            if state != self._state:
                text = self.file.read_bytes()[: certificatemap.MAX_CHARS + 1].decode("utf-8", "replace")
                self._map = certificatemap.parse(text, assume_hash_keys=self.assume_hash_keys)
                self._state = state
        except (OSError, BadMap) as fault:
            self._map, self._state = CertificateMap(), None
            self._tell(
                f"CERTIFICATE_MAPFILE = {self.file} cannot be used, so nobody is known by it: {fault}", logging.WARNING
            )
