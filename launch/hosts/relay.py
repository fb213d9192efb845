"""The way to the coordinator, through a process of our own.

The runtime of jax aborts a process, in C++ and with a stack trace, as soon as its connection to the coordinator breaks.
Here it connects to a process of our own on the same machine instead, and what it sends is handed on. If the coordinator
dies, the runtime hears only silence, and the process has the time to end with a sentence.

That is no thread, since calls into the runtime may wait for an answer of the coordinator while they hold Python's lock,
as `reached_preemption_sync_point` does: a thread that hands the answer on would wait for that lock, for ever.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time


class Relay:
    """Hands on all connections to `address` to `coordinator`; `lost` is set as soon as it closes one.

    Its process ends with this one, however that ends.

    Raises:
        TimeoutError: nobody listens within `seconds`.
    """

    def __init__(self, coordinator: str, seconds: float):
        host, _, port = coordinator.rpartition(":")
        host = host.strip("[]")
        self.lost = threading.Event()
        deadline = time.monotonic() + seconds
        while not _answers(host, int(port)):
            if time.monotonic() > deadline:
                raise TimeoutError(coordinator)
            time.sleep(0.2)
        # Its standard input is never written to: it ends when this process does, and the pipe with it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{self._process.stdout.readline().strip()}"
        _thread(self._listen)

    def close(self) -> None:
        """Ends its process, and with it every connection."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as told:
            told.readline()  # a word, or the end of the process
        self.lost.set()


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def _relay(host: str, port: int) -> None:
    """The process: prints its port, then a word when the coordinator has closed a connection."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to all of its processes
        signal.signal(number, signal.SIG_IGN)
    _thread(_end_with, sys.stdin.fileno())
    own = socket.create_server(("127.0.0.1", 0))
    print(own.getsockname()[1], flush=True)
    while True:
        near, _ = own.accept()
        try:
            far = socket.create_connection((host, port))
        except OSError:
            _say_lost()
            continue
        for side in (near, far):  # the runtime's messages are small, and it waits for each
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = threading.Event()
        _thread(_hand_on, near, far, ours)
        _thread(_hand_back, far, near, ours)


def _hand_on(near: socket.socket, far: socket.socket, ours: threading.Event) -> None:
    _copy(near, far)
    ours.set()  # it is this side that has closed the connection
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_RDWR)


def _hand_back(far: socket.socket, near: socket.socket, ours: threading.Event) -> None:
    _copy(far, near)
    if not ours.is_set():
        _say_lost()  # the near side stays open


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def _say_lost() -> None:
    with contextlib.suppress(OSError):
        print("lost", flush=True)


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(0)


def _thread(*call: object) -> None:
    target, *words = call
    threading.Thread(target=target, args=words, daemon=True).start()  # type: ignore[arg-type]


if __name__ == "__main__":
    _relay(sys.argv[1], int(sys.argv[2]))
