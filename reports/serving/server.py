"""HTTP server of a site, bound to this machine: GET and HEAD, for requests that name this machine as their host.

The check of the host keeps out web pages whose name was made to lead to 127.0.0.1. Nothing that a browser sends becomes
a path of a file: `Site` finds a run by its name among those that are there.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from lossscope.landscape.errors import LandscapeError
from lossscope.reports.serving.site import PAGES, Page, Site

__all__ = ["ADDRESS", "Server"]

ADDRESS: Final = "127.0.0.1"
_SECONDS: Final = 10.0  # without a byte from a client, or to it, after which it is left
_REQUEST_SECONDS: Final = 30.0  # in which a request has to be complete
_CONNECTIONS: Final = 64  # at the same time
_LONGEST_TARGET: Final = 8192  # characters


class Server(ThreadingHTTPServer):
    """Server of a site on a port of 127.0.0.1; `serve_forever` serves until `shutdown` or an interrupt.

    Args:
        site: The pages.
        port: The port; 0 takes one that is free.

    Raises:
        OSError: The port is taken, or may not be used.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        """The address of the index."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def hosts(self) -> frozenset[str]:
        """Return the values of a Host header that name this server."""
        ends = {f":{self.server_port}", *([""] if self.server_port == 80 else [])}
        return frozenset(name + end for name in ("localhost", ADDRESS, "[::1]") for end in ends)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a request in a thread of its own; a connection beyond the last that is allowed is closed."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a request, and give its place to the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that left or was left: nobody is there to read it."""


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection ends with it."""

    server: Server
    timeout = _SECONDS

    def setup(self) -> None:
        """Begin, and end the connection when the request takes too long, however steadily its bytes come."""
        super().setup()
        self._limit = threading.Timer(_REQUEST_SECONDS, self._cut)
        self._limit.daemon = True
        self._limit.start()

    def finish(self) -> None:
        """End, also where the client is gone."""
        self._limit.cancel()
        super().finish()

    def do_GET(self) -> None:
        """Answer with a page."""
        self._limit.cancel()
        self._answer()

    def do_HEAD(self) -> None:
        """Answer with the headers of a page."""
        self._limit.cancel()
        self._answer()

    def _answer(self) -> None:
        """Answer a GET or a HEAD."""
        if not self._names_this_server():
            self._refuse(HTTPStatus.FORBIDDEN, "the Host header names another server")
            return
        if len(self.path) > _LONGEST_TARGET:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
            return
        try:
            page = self._page()
        except LandscapeError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, " ".join(str(error).split()))
            return
        except Exception as error:  # a page that cannot be made takes no other one with it
            words = f"this page could not be made ({type(error).__name__}): try lossscope report on the run"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, words)
            return
        if page is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page: / lists the runs")
            return
        self._send(page)

    def _page(self) -> Page | None:
        """Return the page of the address; None if there is none."""
        target = self.path.partition("?")[0]
        if target == "/":
            return self.server.site.index()
        head, kind, name = [*target.split("/", 2), "", ""][:3]
        if head or kind not in PAGES:
            return None
        return self.server.site.report(kind, unquote_to_bytes(name))

    def _names_this_server(self) -> bool:
        """Return True if the request has one Host header, which is this server's."""
        given = self.headers.get_all("Host") or []
        return len(given) == 1 and given[0].strip().lower() in self.server.hosts()

    def _send(self, page: Page) -> None:
        """Send a page, or that it has not changed."""
        tag = f'"{page.tag}"'
        fresh = tag in [one.strip() for one in self.headers.get("If-None-Match", "").split(",")]
        content = page.html.encode()
        self.send_response(HTTPStatus.NOT_MODIFIED if fresh else HTTPStatus.OK)
        self._send_fixed_headers(page.policy)
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", formatdate(page.changed, usegmt=True))
        if page.refresh is not None:
            self.send_header("Refresh", str(page.refresh))
        if not fresh:
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET" and not fresh:
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that could not be read, without a word of it; other methods are not allowed."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed")
        else:
            self._refuse(HTTPStatus(code), HTTPStatus(code).phrase)

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        """Send a line of text in place of a page."""
        content = f"{status.value}: {words}\n".encode()
        self.close_connection = True
        self.send_response(status)
        self._send_fixed_headers("default-src 'none'; frame-ancestors 'none'")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(content)

    def _send_fixed_headers(self, policy: str) -> None:
        """Send the headers that every answer has."""
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-cache")

    def version_string(self) -> str:
        """Return the name of the server, without the version of anything."""
        return "lossscope"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: an address may hold anything, and a terminal shows it."""

    def _cut(self) -> None:
        """End the connection, which ends a read that waits for more."""
        with suppress(OSError):  # it has ended
            self.connection.shutdown(socket.SHUT_RDWR)
