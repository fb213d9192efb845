"""Where it runs: one file per command."""

import os
import sys

# While Python looks for the file of `-m launch.train`. jax then tells errors and no warnings, such as that of what
# `hosts` asks of it; whoever has set the variable hears what they asked for.
if sys.argv[0] == "-m":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import model  # which tells jax of this machine: see model/platforms.py
