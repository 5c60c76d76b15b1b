"""Real HTTP servers for tests, each in a thread."""

from __future__ import annotations

import http.server
import socket
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[Handler], host: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), handler)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def handle_error(self, *args: object) -> None:
        """Of clients that have hung up."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()
