"""A web server on loopback that serves bytes from memory, and fails in the ways that it is told to."""

import contextlib
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback(ThreadingHTTPServer):
    """files: {path: content}; an address below /moved/ redirects to the rest of it below /place<n>/, see `moves`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.ranges = True  # False: Range headers are ignored, every answer is the whole file
        self.status = defaultdict(list)  # path -> statuses of its next answers; 200 is an ordinary one
        self.cuts = defaultdict(list)  # path -> bytes after which its next answers break off; None: a whole answer
        self.moves = float("inf")  # answers that a redirected place gives before it answers 403
        self.places = []  # of each redirection, how many answers it still gives
        self.delay = 0.0  # s before each answer
        self.log = []  # (path, Range header or None, bytes sent)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def asked(self, part):
        """Requests for paths that contain `part`."""
        return sum(part in path for path, _, _ in self.log)

    def handle_error(self, request, client_address):
        """Say nothing of a client that was killed."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small answers would wait 40 ms

    def log_message(self, *arguments):
        pass

    def refuse(self, status, **headers):
        self.server.log.append((self.path, self.headers.get("Range"), 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        server, path = self.server, self.path
        time.sleep(server.delay)
        if path.startswith("/moved/"):
            server.places.append(server.moves)
            return self.refuse(302, Location=path.replace("/moved/", f"/place{len(server.places) - 1}/"))
        if found := re.match("/place([0-9]+)(/.*)", path):
            place, path = int(found[1]), found[2]
            if server.places[place] == 0:
                return self.refuse(403)
            server.places[place] -= 1
        status = server.status[path].pop(0) if server.status[path] else 200
        if status != 200 or path not in server.files:
            return self.refuse(status if status != 200 else 404)
        content = server.files[path]
        first, last, wanted = 0, len(content), self.headers.get("Range")
        if wanted and server.ranges:
            start, end = re.fullmatch("bytes=([0-9]*)-([0-9]*)", wanted).groups()
            first = int(start) if start else max(0, len(content) - int(end))
            last = min(int(end) + 1, len(content)) if start and end else len(content)
            if first >= len(content):
                return self.refuse(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last - first))
        self.end_headers()
        cut = server.cuts[path].pop(0) if server.cuts[path] else None
        body = content[first:last][:cut]
        server.log.append((path, wanted, len(body)))
        self.wfile.write(body)
        if len(body) < last - first:
            self.close_connection = True


@contextlib.contextmanager
def serve():
    """A running Loopback."""
    with Loopback() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
