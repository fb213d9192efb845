"""Becomes a Python command that the kernel kills as soon as the process that started it has gone (Linux)."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); kept over execv

if __name__ == "__main__":
    parent, *words = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # else it has gone before
        os.execv(sys.executable, [sys.executable, *words])
