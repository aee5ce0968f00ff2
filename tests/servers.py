"""Servers on the loopback: S3 (moto), HTTP with ranges, SFTP (asyncssh), and a wire that counts."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# botocore asks nobody else for credentials, and does not try again for seconds.
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "1",
}


class Wire:
    """A TCP proxy on the loopback that counts bytes, and may be cut.

    Attributes:
        down, up: Bytes from the server and to it; all that was on the wire.
        limits: ``(direction, bytes)`` → called once when so many have passed; the direction is
            ``"down"`` or ``"up"``. What is sent waits until the call returns.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.down = self.up = 0
        self.limits: dict[tuple[str, int], Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._is_cut = False
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                with self._lock:
                    self._sockets += (client, server)
                    if self._is_cut:
                        self._break()
                        return
                for one, other, direction in ((client, server, "up"), (server, client, "down")):
                    thread = threading.Thread(target=self._carry, args=(one, other, direction))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, one: socket.socket, other: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                with self._lock:
                    total = getattr(self, direction) + len(data)
                    setattr(self, direction, total)
                    due = [k for k in self.limits if k[0] == direction and k[1] <= total]
                    calls = [self.limits.pop(key) for key in due]
                for call in calls:
                    call()
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """The server is gone: connections break, and new ones are refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        with self._lock:
            self._is_cut = True
            self._break()

    def _break(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


@contextlib.contextmanager
def wire(port: int) -> Iterator[Wire]:
    found = Wire(port)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port where nobody listens, nor can meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """An S3-compatible server: its port. Its buckets are the process's, and last."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder. ``/secret/...`` is refused; ``/whole/...`` is given without ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/secret/"):
            self.send_error(403)
            return
        path = Path(self.translate_path(self.path.removeprefix("/whole")))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, end = 0, len(content)
        if asked and not self.path.startswith("/whole/"):
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


class _HttpServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Whoever only wants the header of an answer hangs up."""


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[int]:
    """A server of files, by ranges: its port."""
    handler = partial(_Handler, directory=str(folder))
    server = _HttpServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def sftp_server(home: Path) -> Iterator[int]:
    """An SFTP server that lets in whoever has the key in *home*, and is known there: its port.

    *home* is that of the client: ``.ssh`` is made in it.
    """
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    key.write_private_key(ssh / "id_ed25519")
    key.write_public_key(ssh / "authorized_keys")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> Any:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[key],
            authorized_client_keys=str(ssh / "authorized_keys"),
            sftp_factory=True,
        )

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        port = server.get_port()
        public = key.export_public_key().decode().strip()
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
