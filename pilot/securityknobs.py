"""The knobs about who is who: methods of authentication, certificates, tokens, and who may do what."""

from __future__ import annotations

from pathlib import Path

import attrs

from pilot.knobs import knob, methods, path, peers, text, yes_or_no
from pilot.peers import Peers


@attrs.frozen(kw_only=True)
class SecuritySettings:
    """A part of `pilot.settings.Settings`; docs/security.md says how they work together."""

    sec_default_authentication_methods: tuple[str, ...] | None = knob(
        "",
        methods(),
        "Methods of authentication in the order of preference, for both roles. Those of HTCondor that we do not have"
        " are passed over.",
        unset="what SEC_CLIENT_AUTHENTICATION_METHODS says; as a server FS, TOKEN with a signing key, SSL with a"
        " certificate",
    )
    sec_client_authentication_methods: tuple[str, ...] | None = knob(
        "",
        methods(),
        "The same for this daemon as a client of the pool.",
        unset="SEC_DEFAULT_AUTHENTICATION_METHODS; without it those of TOKEN, SCITOKENS and SSL that there is something"
        " to show for, and FS when there is nothing",
    )
    sec_token_pool_signing_key_file: Path | None = knob(
        "",
        path(optional=True),
        "The pool's signing key (0600), by which this daemon checks tokens; on a pilot's node only where nobody else"
        " can become its account.",
        unset="POOL in SEC_PASSWORD_DIRECTORY",
    )
    sec_enable_remote_administration: bool = knob(
        "True",
        yes_or_no(),
        "Gives the collector a capability by which the pool's administrators may steer this startd.",
    )
    scitokens_file: Path | None = knob(
        "$ENV(BEARER_TOKEN_FILE:)",
        path(optional=True),
        "The token for SCITOKENS, on a line of its own; 0600, renewed in place.",
        unset="bt_u<uid> in /run/user/<uid>, then in /tmp",
    )
    auth_ssl_client_cafile: Path | None = knob(
        "", path(optional=True), "Authorities that servers' certificates may be of, in one file.", unset="none"
    )
    auth_ssl_client_cadir: Path | None = knob(
        "", path(optional=True), "The same as a directory, by the subject's hash.", unset="none"
    )
    auth_ssl_client_use_default_cas: bool = knob("True", yes_or_no(), "Trusts the system's authorities, too.")
    auth_ssl_client_certfile: Path | None = knob(
        "", path(optional=True), "Our certificate as a client; a proxy's file may stand here.", unset="none is shown"
    )
    auth_ssl_client_keyfile: Path | None = knob(
        "",
        path(optional=True),
        "Its key, without a pass phrase, not to be read by others.",
        unset="AUTH_SSL_CLIENT_CERTFILE has it",
    )
    auth_ssl_use_client_proxy_env_var: bool = knob(
        "False", yes_or_no(), "Shows the pilot's proxy (X509_USER_PROXY, SAILPLANE_PILOT_PROXY) as our certificate."
    )
    ssl_skip_host_check: bool = knob(
        "False", yes_or_no(), "Takes a server's certificate of any host; whoever has one can then be the pool."
    )
    auth_ssl_server_cafile: Path | None = knob(
        "", path(optional=True), "Authorities that clients' certificates may be of, in one file.", unset="none"
    )
    auth_ssl_server_cadir: Path | None = knob(
        "", path(optional=True), "The same as a directory, by the subject's hash.", unset="none"
    )
    auth_ssl_server_use_default_cas: bool = knob("True", yes_or_no(), "Trusts the system's authorities, too.")
    auth_ssl_server_certfile: Path | None = knob(
        "", path(optional=True), "This host's certificate. Without it our port does not offer SSL.", unset="none"
    )
    auth_ssl_server_keyfile: Path | None = knob(
        "",
        path(optional=True),
        "Its key, without a pass phrase, not to be read by others.",
        unset="AUTH_SSL_SERVER_CERTFILE has it",
    )
    host_alias: str | None = knob(
        "",
        text(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?", "a host name", optional=True),
        "The host's name in our address, which clients compare with AUTH_SSL_SERVER_CERTFILE.",
        unset="clients go by what else they know of us: the slot's name after the @",
    )
    auth_ssl_require_client_certificate: bool = knob(
        "False", yes_or_no(), "Refuses SSL to clients without a certificate, who may look (READ) otherwise."
    )
    auth_ssl_allow_client_proxy: bool = knob("False", yes_or_no(), "Takes a proxy as a client's certificate.")
    certificate_mapfile: Path | None = knob(
        "",
        path(optional=True),
        "Which user the name of a client's certificate stands for; whoever is not in it may only look.",
        unset="nobody is known by a certificate",
    )
    certificate_mapfile_assume_hash_keys: bool = knob(
        "False", yes_or_no(), "Names in it are whole names, and only /.../ is a regular expression."
    )
    allow_read: tuple[Peers, ...] = knob("*", peers(), "Who may look: queries of the slots' ads.")
    allow_write: tuple[Peers, ...] | None = knob(
        "",
        peers(optional=True),
        "Who may do what needs WRITE, and with it READ.",
        unset="the daemon's own account, and root",
    )
    allow_administrator: tuple[Peers, ...] | None = knob(
        "",
        peers(optional=True),
        "Who may vacate, drain, reconfigure and end the startd, and with it WRITE and READ.",
        unset="the daemon's own account, and root; the pool's administrators have the collector's capability",
    )
    allow_daemon: tuple[Peers, ...] | None = knob(
        "",
        peers(optional=True),
        "Who is one of the pool's daemons, and with it WRITE and READ. Claims need their own sessions all the same.",
        unset="nobody",
    )
    deny_read: tuple[Peers, ...] | None = knob(
        "", peers(optional=True), "Who may not look, and nothing that includes it, whatever is allowed.", unset="nobody"
    )
    deny_write: tuple[Peers, ...] | None = knob("", peers(optional=True), "The same of WRITE.", unset="nobody")
    deny_administrator: tuple[Peers, ...] | None = knob(
        "", peers(optional=True), "The same of ADMINISTRATOR.", unset="nobody"
    )
    deny_daemon: tuple[Peers, ...] | None = knob("", peers(optional=True), "The same of DAEMON.", unset="nobody")
