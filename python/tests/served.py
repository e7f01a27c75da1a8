#!/usr/bin/env python3
"""Stands for the program in tests of what is in front of it: it tells its address as the program does, and answers at once."""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# A stream goes on after each request for /go.
GO = threading.Semaphore(0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        if self.path == "/slow":
            time.sleep(1)
        if self.path == "/go":
            GO.release()
        self.answer(404 if self.path == "/nothing" else 200, {"pid": os.getpid(), "path": self.path, "arguments": sys.argv[1:]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/stream":
            return self.answer(200, {"got": body.decode(), "key": self.headers.get("Authorization")})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(3):
            piece = f"data: {i}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            GO.acquire(timeout=60)
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if sys.argv[2] == "broken":
    sys.exit("error: broken.gguf is no model")
if sys.argv[2] == "slow":
    time.sleep(60)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"`{sys.argv[2]}` is served on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
server.serve_forever()
