"""Serves a page of runs to this machine alone."""

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from actfer_jax.errors import UserError
from actfer_jax.files import file_errors, reason
from actfer_jax.viewer.site import PAGE, Site

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png"}
_HEADERS = {
    # No other page may load the data, which are scripts and pictures, or show this page in a frame.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_server(site: Site, port: int) -> ThreadingHTTPServer:
    """A server of the site on the loopback address.

    Args:
      port: 0 for a free one.

    Raises:
      UserError: the port is taken, or may not be used.
    """
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A name that some other site has pointed at this machine is not answered.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost"):
                return self.send_error(403)
            address = self.path.split("?")[0].removeprefix("/") or PAGE
            try:
                with lock:
                    content = site.content(address)
            except file_errors(UserError) as error:
                log.error("%s: %s", address, error)
                return self.send_error(500, "a file of the run cannot be read", str(error))
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            for name, value in {**_HEADERS, "Content-Type": _TYPES[address.rpartition(".")[2]]}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            log.debug(format, *arguments)

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        raise UserError(f"--port is {port}, which cannot be used ({reason(error)}); 0 is a free one") from error
