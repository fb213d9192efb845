"""A process that runs programs of a store for `launch.ablate --jobs`: keys come by its standard input, answers go out.

It ends when its input is closed, at once and in whatever it does: whoever started it has ended, and goes on later.
"""

import os
import queue
import sys
import threading
from pathlib import Path

from launch.ablation.programs import Store
from launch.ablation.running import serve


def _main(folder: str) -> None:
    keys: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def listen() -> None:
        for line in sys.stdin:
            keys.put(line.strip())
        os._exit(0)  # nothing is lost that was saved

    def answer(text: str) -> None:
        answers.write(f"{text}\n")
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    serve(Store(Path(folder)), keys.get, answer)


if __name__ == "__main__":
    _main(sys.argv[1])
