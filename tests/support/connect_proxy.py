"""An HTTP proxy that opens tunnels, and a forwarded port, for tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class ConnectProxy:
    """A proxy that connects, or replies with a status, and records the requests.

    Args:
        status: of every reply.
    """

    def __init__(self, status: str = "200 OK") -> None:
        self._status, self.requests = status, list[bytes]()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += near.recv(1)
        self.requests.append(request)
        near.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
        if not self._status.startswith("200"):
            near.close()
            return
        host, _, port = request.split(b" ")[1].decode().rpartition(":")
        far = socket.create_connection((host.strip("[]"), int(port)))
        threading.Thread(target=_copy, args=(near, far), daemon=True).start()
        _copy(far, near)

    @property
    def targets(self) -> list[str]:
        """The addresses asked for."""
        return [request.split(b" ")[1].decode() for request in self.requests]


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()


@contextlib.contextmanager
def forwarded(listener: socket.socket, host: str, port: int) -> Iterator[None]:
    """Forward every connection of a listener to a port of this machine."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.close()
