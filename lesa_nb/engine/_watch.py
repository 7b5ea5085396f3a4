"""Notice when another process of a run ends, whatever this one is waiting for.

A process inside a GPU's collective waits for the others, and nothing tells it that one has gone: it would wait until
the collective times out. So every process keeps a line open to the main one, a TCP connection. Who leaves in order says
goodbye with a byte; a line that is cut without it means that its process has failed or was killed, and then the others
end, too. The operating system cuts the lines of a dead process, so nobody has to be asked, and a long validation is not
mistaken for death.
"""
from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Watch"]

_GOODBYE = b"b"
_GRACE = 20.  # seconds in which a process may end by itself, with a better sentence
_CONNECT = 30.  # seconds to take up the line

_OPEN: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_child() -> None:
    """A process that reads ahead does not hold the lines of the one it was forked from."""
    for line in list(_OPEN):
        line.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _keep_alive(line: socket.socket) -> socket.socket:
    """Let the system notice within about half a minute that a whole machine has gone."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _OPEN.add(line)
    return line


class Watch:
    """The lines of one process, from when it joins a group until `close`.

    Args:
        rank: Number of this process.
        size: How many there are.
        host: Where the others reach process 0.
        share: Gives all processes what process 0 hands in; all come here together.
        sentence: What to say before ending this process because another one has gone.
    """

    def __init__(self, rank: int, size: int, *, host: str, share: Callable[[Any], Any], sentence: str):
        self._sentence, self._left = sentence, threading.Event()
        self._lines: list[socket.socket] = []
        server = self._server() if rank == 0 else None
        port, token = share((server.getsockname()[1], secrets.token_bytes(16)) if server else None)
        with contextlib.suppress(OSError):  # without a line a run goes on as well, it only learns of a death later
            if server:
                self._accept(server, size - 1, token)
            else:
                line = socket.create_connection((host, port), timeout=_CONNECT)
                line.sendall(token)
                self._lines = [_keep_alive(line)]
        threading.Thread(target=self._listen, daemon=True, name="lesa-watch").start()

    @staticmethod
    def _server() -> socket.socket:
        with contextlib.suppress(OSError, ValueError):  # a machine without IPv6
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", 0))

    def _accept(self, server: socket.socket, number: int, token: bytes) -> None:
        with server:
            server.settimeout(_CONNECT)
            while len(self._lines) < number:
                line, _ = server.accept()
                line.settimeout(_CONNECT)
                with contextlib.suppress(OSError):
                    if secrets.compare_digest(line.recv(len(token), socket.MSG_WAITALL), token):
                        self._lines.append(_keep_alive(line))
                        continue
                line.close()  # a stranger

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line, selectors.EVENT_READ, line)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    try:
                        said = key.data.recv(1)
                    except OSError:
                        said = b""
                    if said != _GOODBYE and not self._left.wait(_GRACE):
                        print(self._sentence, file=sys.stderr, flush=True)
                        os._exit(1)

    def close(self, *, in_order: bool = False) -> None:
        """Hang up: in order, all others being told, or not, so that they end, too. Later calls do nothing."""
        if self._left.is_set():
            return
        self._left.set()
        for line in self._lines:
            with contextlib.suppress(OSError):
                if in_order:
                    line.sendall(_GOODBYE)
                line.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens; it has nothing more to do
