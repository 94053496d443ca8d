"""A web server that does what real ones do on bad days; for the tests of downloads."""

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request:
    """What a script sees: path, headers, and ways to answer.

    number  of the request, from 0
    start   where the asked-for range begins, or None
    """

    def __init__(self, handler, number):
        self.handler, self.number = handler, number
        self.path, self.headers = handler.path, handler.headers
        asked = handler.headers.get("Range")
        self.start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else None

    def head(self, status, **headers):
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def body(self, data):
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def whole(self, data, **headers):
        self.head(200, Content_Length=len(data), **headers)
        self.body(data)

    def rest(self, data, **headers):
        """From where it was asked, or all; as a good server."""
        if self.start is None:
            self.whole(data, **headers)
        elif self.start >= len(data):
            self.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
        else:
            left = data[self.start :]
            span = f"bytes {self.start}-{len(data) - 1}/{len(data)}"
            self.head(206, Content_Length=len(left), Content_Range=span, **headers)
            self.body(left)

    def redirect(self, place):
        self.head(302, Location=place, Content_Length=0)


@contextmanager
def serving(script):
    """Yields (base address, requests seen); `script(request)` answers each, then it is closed."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with lock:
                one = Request(self, len(seen))
                seen.append(one)
            with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
                script(one)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
