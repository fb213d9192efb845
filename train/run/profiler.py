"""A trace of a few steps, for xprof or TensorBoard."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

import jax

from model.errors import UserError
from train.run.bucket.address import in_bucket, mirror_of


@contextlib.contextmanager
def profiler(steps: str, workdir: str | None) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with each recorded step's number; it traces 'FIRST:LAST' into workdir/profile.

    Step n is recorded while n + 1 runs, so the trace starts when FIRST - 2 is recorded and ends when LAST is. It warns
    if none of the steps has run.

    Raises:
        UserError: the text is not FIRST:LAST with 2 < FIRST <= LAST, or there is no folder to write to.
    """
    first, last = _parse(steps) if steps else (0, -1)
    folder = mirror_of(workdir, owned=True) if workdir and in_bucket(workdir) else workdir
    if steps and workdir is None:
        raise UserError(f"--profile_steps={steps} needs a --workdir to write the trace to.")
    running = traced = False

    def recorded(step: int) -> None:
        nonlocal running, traced
        if not running and first <= step + 2 <= last:
            jax.profiler.start_trace(f"{folder}/profile")
            running = traced = True
        elif running and step >= last:
            jax.profiler.stop_trace()
            running = False

    try:
        yield recorded
    finally:
        if running:
            jax.profiler.stop_trace()
        if steps and not traced:
            logging.getLogger("heed").warning(
                "--profile_steps=%s: none of these steps has run, so there is no trace.", steps
            )


def _parse(text: str) -> tuple[int, int]:
    if re.fullmatch("[0-9]{1,9}:[0-9]{1,9}", text):
        first, last = map(int, text.split(":"))
        if 2 < first <= last:
            return first, last
    raise UserError(f"--profile_steps={text!r} is not FIRST:LAST with 2 < FIRST <= LAST, such as 10:13.")
