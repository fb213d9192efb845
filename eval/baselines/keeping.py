"""Baselines are computed once for each data set, and kept in the cache folder."""

import logging
from collections.abc import Callable

from train.devices.machine import cache_folder
from train.run.files.json_files import check_numbers, read_cache, write

log = logging.getLogger("heed")


def kept(fingerprint: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Returns the baselines of the data with this fingerprint: what was kept, or else computed and then kept."""
    file = cache_folder() / f"baselines-{fingerprint[:32]}.json"
    known = read_cache(file, check_numbers)
    if known is not None:
        return dict(known)
    values = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, values)
    except OSError as error:
        log.warning("the baselines cannot be kept in %s (%s): each run counts them anew.", file, error.strerror)
    return values
