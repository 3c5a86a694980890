"""A server on this machine that alerts are posted to."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Receiver:
    """Takes posts; answers with the statuses given, then with ``otherwise``."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.otherwise = 204
        self.taken: list[Any] = []
        self.asked: list[tuple[str, str | None]] = []
        self.keys: list[tuple[str | None, str]] = []
        """Of each post: its header ``Idempotency-Key``, and the id in its body."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.asked.append((self.path, self.headers["Authorization"]))
                receiver.keys.append((self.headers["Idempotency-Key"], body["id"]))
                status = receiver.statuses.pop(0) if receiver.statuses else receiver.otherwise
                if status < 300:
                    receiver.taken.append(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/secret-path"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
