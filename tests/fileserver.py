"""A small HTTP server on loopback for tests of URLs: serves and takes files in memory."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

TOKEN = "s3cret"


@attrs.define
class FileServer:
    """`kept`: files by path. Below /private only whoever shows the token gets any. `moved`: other URLs by path."""

    url: str
    kept: dict[str, bytes]
    moved: dict[str, str] = attrs.field(factory=dict)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """A server at 127.0.0.1 (localhost, with TLS), gone at the end."""
    kept: dict[str, bytes] = {}
    moved: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in moved:
                self._answer(302, b"", Location=moved[self.path])
                return
            allowed = "/private" not in self.path or self.headers["Authorization"] == f"Bearer {TOKEN}"
            data = kept.get(self.path) if allowed else None
            self._answer(200 if data is not None else 404 if allowed else 403, data or b"")

        def do_PUT(self) -> None:
            kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(201, b"")

        def _answer(self, code: int, data: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        start = "http://127.0.0.1" if tls is None else "https://localhost"
        yield FileServer(f"{start}:{httpd.server_port}", kept, moved)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
