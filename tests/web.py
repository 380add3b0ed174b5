"""A real HTTP server on this machine that can be slow, cut connections, lie, change its mind and count."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What the server has and how it behaves; may be changed at any time.

    Attributes:
        address: with a slash at the end.
        files: path without the first slash -> content.
        cut: bodies are cut after so many bytes each, for the first ``cuts`` answers.
        ranges: whether Range is understood.
        validators: whether there is an ETag.
        statuses: answers of the next requests, before anything else; 0 for a real one.
        reason: the words beside such a status; None for the usual ones.
        pause_s: seconds before each 64 KiB of a body.
        extra: bytes by which the stated length is too large.
        requests: (path, first byte asked for) of each GET.
        sent: bytes of bodies sent.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: int = 0
    cuts: int = 0
    ranges: bool = True
    validators: bool = True
    lengths: bool = True
    statuses: list[int] = field(default_factory=list)
    reason: str | None = None
    pause_s: float = 0.0
    extra: int = 0
    requests: list[tuple[str, int]] = field(default_factory=list)
    sent: int = 0
    before: Callable[[], Any] = lambda: None

    def url(self, name: str) -> str:
        return self.address + name


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.lstrip("/").partition("?")[0]
            wanted = self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            site.requests.append((name, start))
            site.before()
            status = site.statuses.pop(0) if site.statuses else 0
            if status or name not in site.files:
                self.send_response(status or 404, site.reason)
                if status in (301, 302):
                    self.send_header("Location", site.url("elsewhere"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.give(site.files[name], start)

        def give(self, content: bytes, start: int) -> None:
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            whole = not site.ranges or self.headers.get("If-Range", tag) != tag
            start = 0 if whole else start
            if start >= len(content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.validators:
                self.send_header("ETag", tag)
            if site.lengths:
                self.send_header("Content-Length", str(len(content) - start + site.extra))
            self.end_headers()
            self.body(content[start:])

        def body(self, rest: bytes) -> None:
            if site.cuts:
                site.cuts -= 1
                rest = rest[: site.cut]
            for i in range(0, len(rest), 1 << 16):
                time.sleep(site.pause_s)
                block = rest[i : i + (1 << 16)]
                self.wfile.write(block)
                self.wfile.flush()
                site.sent += len(block)
            self.close_connection = True

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def serve() -> Iterator[Site]:
    """A server with nothing on it."""
    site = Site()
    with _Server(("127.0.0.1", 0), _handler(site)) as server:
        site.address = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield site
        server.shutdown()
