"""How this startd shows the pool who it is: methods, tokens, certificates. What is there is looked up at each dial."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import attrs

from cedar import scitokens
from cedar.client import Negotiate
from cedar.tls import ClientTls, TlsFiles
from pilot.settings import Settings


def methods(chosen: tuple[str, ...] | None, *, token: bool, scitoken: bool, certificate: bool) -> tuple[str, ...]:
    """The settings' list, or all that there is something to show for.

    FS only when there is nothing: a server that prefers it would take us for our account.
    """
    if chosen:
        return chosen
    there = {"TOKEN": token, "SCITOKENS": scitoken, "SSL": certificate}
    return tuple(name for name, is_there in there.items() if is_there) or ("FS",)


@attrs.frozen
class PoolSecurity:
    """One startd's; its TLS contexts are kept while their files are the same."""

    chosen: tuple[str, ...] | None
    tokens_dir: Path
    scitokens_file: Path | None
    tls: ClientTls
    anonymous_tls: ClientTls

    @classmethod
    def of(cls, settings: Settings) -> PoolSecurity:
        """As the settings say."""
        certificate = settings.auth_ssl_client_certfile
        key = settings.auth_ssl_client_keyfile or certificate
        if settings.auth_ssl_use_client_proxy_env_var and settings.sailplane_pilot_proxy is not None:
            certificate = key = settings.sailplane_pilot_proxy
        trust = TlsFiles(
            settings.auth_ssl_client_cafile,
            settings.auth_ssl_client_cadir,
            settings.auth_ssl_client_use_default_cas,
        )
        check_host = not settings.ssl_skip_host_check
        return cls(
            chosen=settings.sec_client_authentication_methods or settings.sec_default_authentication_methods,
            tokens_dir=settings.sec_token_directory,
            scitokens_file=settings.scitokens_file,
            tls=ClientTls(attrs.evolve(trust, cert_file=certificate, key_file=key), check_host),
            anonymous_tls=ClientTls(trust, check_host),
        )

    def wishes(self) -> Negotiate:
        """For a new session at a collector."""
        uid = os.geteuid()
        return Negotiate(
            tokens_dir=self.tokens_dir,
            methods=methods(
                self.chosen,
                token=self.tokens_dir.is_dir() and any(self.tokens_dir.iterdir()),
                scitoken=scitokens.found(self.scitokens_file, uid),
                certificate=self.tls.files.cert_file is not None,
            ),
            tls=self.tls,
            anonymous_tls=self.anonymous_tls,
            scitoken=partial(scitokens.load, self.scitokens_file, uid, now_unix_s=time.time()),
        )
