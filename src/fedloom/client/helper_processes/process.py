"""A helper in a separate process, and the parent's end of it.

The process is `python -m fedloom.client.helper_processes.process FD PARENT`.
Both ends of a socket exchange pickled tuples; both are on one machine, and nothing is sent to a server. The first
message names the factory, the second has its arguments, each later one a method and its arguments. The process ends
with the socket, or within a second of its parent.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from fedloom.client.helper_processes.factory import ONE_CORE, FactoryRef
from fedloom.core.errors import ClientFailed, NoCapacity
from fedloom.core.protocols import HelperHandle, Resources

_PROGRAM = "fedloom.client.helper_processes.process"
_LOOK_S = 1.0
"""Seconds between a helper's checks whether its parent is alive."""
_STOP_S = 5.0
"""Seconds a stopped helper may take to end before it is killed."""


class ProcessHelpers:
    """Starts helpers as child processes, with the environment and number of threads of their parent."""

    def start(
        self, factory: Callable[..., object], *arguments: object, resources: Resources = ONE_CORE
    ) -> HelperHandle:
        """Start a helper; `resources` are for runtimes that place helpers, the system shares the cores here."""
        return ProcessHelper(FactoryRef.of(factory), arguments)


class ProcessHelper:
    """A helper's process, as its parent calls it.

    Args:
        factory: makes the helper there.
        arguments: for the factory.
    """

    def __init__(self, factory: FactoryRef, arguments: tuple[object, ...]) -> None:
        self._name, self._lock = factory.name, threading.Lock()
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-P",
            "-m",
            _PROGRAM,
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()]
                )
        except OSError as exc:
            ours.close()
            raise NoCapacity(f"helper {self._name}: its process cannot be started: {exc}") from exc
        self._socket = Connection(ours.detach())
        try:
            self._send((factory.module, factory.file, factory.name, sys.path))
            self._ask(arguments)
        except BaseException:
            self.stop()
            raise

    def call(self, method: str, *arguments: object) -> object:
        return self._ask((method, arguments))

    def stop(self) -> None:
        self._socket.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, message: tuple[object, ...]) -> object:
        with self._lock:
            self._send(message)
            try:
                ok, result = self._socket.recv()
            except (EOFError, OSError) as exc:
                raise self._ended() from exc
        if not ok:
            raise ClientFailed(f"helper {self._name}:\n{result}")
        return result

    def _send(self, message: tuple[object, ...]) -> None:
        try:
            self._socket.send(message)
        except OSError as exc:
            raise self._ended() from exc

    def _ended(self) -> ClientFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK_S)
        status = self._process.poll()
        how = "was stopped" if status is None else f"signal {-status}" if status < 0 else f"exit status {status}"
        return ClientFailed(f"helper {self._name}: its process has ended ({how})")


def main(descriptor: int, parent: int) -> None:
    """Serve as a helper until the socket ends."""
    threading.Thread(target=_end_with, args=(parent,), name="fedloom-parent", daemon=True).start()
    with Connection(descriptor) as sock, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        module, file, name, path = sock.recv()
        sys.path.extend(entry for entry in path if entry not in sys.path)
        try:
            factory = FactoryRef(module, file, name).load()  # its classes may be among the arguments
            helper = factory(*sock.recv())
        except Exception:
            sock.send((False, traceback.format_exc()))
            return
        sock.send((True, None))
        while True:
            method, arguments = sock.recv()
            _send(sock, _answer(helper, method, arguments))


def _answer(helper: object, method: str, arguments: tuple[object, ...]) -> tuple[bool, object]:
    try:
        return True, getattr(helper, method)(*arguments)
    except Exception:
        return False, traceback.format_exc()


def _send(sock: Connection, answer: tuple[bool, object]) -> None:
    try:
        data = pickle.dumps(answer)
    except Exception:  # whatever a result's own copying raises
        data = pickle.dumps((False, traceback.format_exc()))
    sock.send_bytes(data)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
