"""Where a host has what sessions of a job's owner need. Apart, since the startd asks, too."""

from __future__ import annotations

import os

SSHD, KEYGEN = "/usr/sbin/sshd", "/usr/bin/ssh-keygen"
# Of Debian, Red Hat, SUSE and Arch, and OpenSSH's own.
SFTP_PLACES = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
)


def sftp_server() -> str:
    """The program for sftp and scp; where there is none, the place where one would be missed."""
    return next((place for place in SFTP_PLACES if os.access(place, os.X_OK)), SFTP_PLACES[0])


def available() -> bool:
    """Whether there can be sessions."""
    return all(os.access(program, os.X_OK) for program in (SSHD, KEYGEN))
