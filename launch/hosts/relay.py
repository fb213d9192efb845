"""The way to the coordinator, through a port of our own.

The runtime of jax aborts a process, in C++ and with a stack trace, as soon as its connection to the coordinator breaks.
Here it connects to a port of its own process instead, and what it sends is handed on. If the coordinator dies, the
runtime hears only silence, and the process has the time to end with a sentence.
"""

import contextlib
import socket
import threading
import time


class Relay:
    """Hands on all connections to `address` to `coordinator`; `lost` is set as soon as it closes one.

    Raises:
        TimeoutError: nobody listens within `seconds`.
    """

    def __init__(self, coordinator: str, seconds: float):
        host, _, port = coordinator.rpartition(":")
        self._coordinator = host.strip("[]"), int(port)
        self.lost = threading.Event()
        deadline = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(coordinator)
            time.sleep(0.2)
        self._port = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        _thread(self._accept)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self._coordinator, timeout=5):
            return True
        return False

    def _accept(self) -> None:
        while True:
            near, _ = self._port.accept()
            try:
                far = socket.create_connection(self._coordinator)
            except OSError:
                self.lost.set()
                return
            for side in (near, far):  # the runtime's messages are small, and it waits for each
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ours = threading.Event()
            _thread(self._hand_on, near, far, ours)
            _thread(self._hand_back, far, near, ours)

    def _hand_on(self, near: socket.socket, far: socket.socket, ours: threading.Event) -> None:
        _copy(near, far)
        ours.set()  # it is this process that has closed the connection
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def _hand_back(self, far: socket.socket, near: socket.socket, ours: threading.Event) -> None:
        _copy(far, near)
        if not ours.is_set():
            self.lost.set()  # the near side stays open


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def _thread(*call: object) -> None:
    target, *words = call
    threading.Thread(target=target, args=words, daemon=True).start()  # type: ignore[arg-type]
