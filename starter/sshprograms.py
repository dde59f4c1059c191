"""Where a host has what sessions of a job's owner need. Apart, since the startd asks, too."""

from __future__ import annotations

import os

SSHD, KEYGEN, SFTP = "/usr/sbin/sshd", "/usr/bin/ssh-keygen", "/usr/lib/openssh/sftp-server"


def available() -> bool:
    """Whether there can be sessions."""
    return all(os.access(program, os.X_OK) for program in (SSHD, KEYGEN))
