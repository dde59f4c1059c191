"""A real myproxy-server on loopback, in a directory of its own, and what users store there with the real tools."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from cryptography.hazmat.primitives import serialization

from demo.grid import Certified, Grid, key_pem, write_private
from pilot.myproxy import Client, Server

MISSING = [name for name in ("myproxy-server", "myproxy-init") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
_CONFIG = """
accepted_credentials "/DC=org/DC=sailplane-demo/*"
authorized_retrievers "*"
default_retrievers "*"
authorized_renewers "{pilot}"
authorized_renewers "FQAN:{fqan}"
default_renewers "none"
trusted_retrievers "{pilot}"
trusted_retrievers "FQAN:{fqan}"
default_trusted_retrievers "none"
authorized_key_retrievers "none"
max_proxy_lifetime 24
allow_self_authorization 1
"""
PEM = serialization.Encoding.PEM
# Without it the server knows no FQANs.
VOMS_PART = next(Path("/usr/lib").glob("*/libmyproxy_voms.so"), None)
# With this one a client that the server trusts to state it may renew, and retrieve without a passphrase.
FQAN = "/demo/Role=renewer/Capability=NULL"


@attrs.define
class MyProxy:
    """The server, and the directory for users' files."""

    grid: Grid
    directory: Path
    port: int

    @property
    def server(self) -> Server:
        return Server("localhost", self.port)

    def client(self, certified: Certified | None) -> Client:
        return Client(self.grid.certificates_dir, None if certified is None else certified.pem)

    def store(self, user: Certified, username: str, *options: str, passphrase: str = "") -> None:
        """myproxy-init with a user's certificate; the passphrase on its standard input."""
        files = self.directory / f"user-{username}-{time.monotonic_ns()}"
        files.mkdir(mode=0o700)
        (files / "cert").write_bytes(user.certificate.public_bytes(PEM))
        write_private(files / "key", key_pem(user.key))
        command = ["myproxy-init", "-s", "localhost", "-p", str(self.port), "-l", username, *options]
        command += ["-S"] if passphrase else []
        _run(
            command, {
                **self.environment(), "HOME": str(files), "X509_USER_CERT": str(files / "cert"),
                "X509_USER_KEY": str(files / "key"),
            }, f"{passphrase}\n",
        )  # fmt: skip

    def store_proxy(self, proxy: Certified, username: str, *options: str) -> None:
        """myproxy-store: a proxy as it is, with what is in it."""
        file = write_private(self.directory / f"proxy-{username}-{time.monotonic_ns()}", proxy.pem)
        command = ["myproxy-store", "-s", "localhost", "-p", str(self.port), "-l", username, *options]
        command += ["-c", str(file), "-y", str(file)]
        _run(command, {**self.environment(), "HOME": str(self.directory), "X509_USER_PROXY": str(file)})

    def trust(self, voms_server: Certified) -> None:
        """What this server states of the VO demo is believed, from now on."""
        lsc = self.voms_dir / "demo" / f"{voms_server.subject.rpartition('/CN=')[2]}.lsc"
        lsc.parent.mkdir(parents=True, exist_ok=True)
        lsc.write_text(f"{voms_server.subject}\n{self.grid.authority.subject}\n")

    @property
    def voms_dir(self) -> Path:
        return self.directory / "vomsdir"

    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/bin", "X509_CERT_DIR": str(self.grid.certificates_dir),
            "X509_VOMS_DIR": str(self.voms_dir),
            "MYPROXY_SERVER_DN": "/DC=org/DC=sailplane-demo/CN=localhost",
        }  # fmt: skip


@contextlib.contextmanager
def myproxy_server(grid: Grid, directory: Path, pilot: Certified) -> Iterator[MyProxy]:
    """Runs until the end of the context. `pilot` may renew, and retrieve without a passphrase."""
    directory.mkdir(exist_ok=True)
    host = grid.host("localhost", key="rsa")
    (directory / "host.cert").write_bytes(host.certificate.public_bytes(PEM))
    write_private(directory / "host.key", key_pem(host.key))
    (directory / "store").mkdir(mode=0o700)
    config = directory / "config"
    config.write_text(_CONFIG.format(pilot="*/CN=" + pilot.subject.rpartition("/CN=")[2], fqan=FQAN))
    running = MyProxy(grid, directory, _free_port())
    environment = {
        **running.environment(), "X509_USER_CERT": str(directory / "host.cert"),
        "X509_USER_KEY": str(directory / "host.key"), "HOME": str(directory),
    }  # fmt: skip
    command = [
        "/usr/sbin/myproxy-server", "-l", "127.0.0.1", "-p", str(running.port), "-P", str(directory / "pid"),
        "-c", str(config), "-s", str(directory / "store"),
    ]  # fmt: skip
    _run(command, environment)
    try:
        _wait_for(running.port, directory / "pid")
        yield running
    finally:
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((directory / "pid").read_text()), 15)


def _run(command: list[str], environment: dict[str, str], stdin: str = "") -> None:
    done = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, pid: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and pid.exists():
                return
        time.sleep(0.02)
    raise AssertionError("myproxy-server does not listen")
