"""A process of its own, without a compilation cache: what compiling 48 layers costs beside 2, as JSON.

Counted in CPU seconds, because others may use the machine; the median of three, taken in turn.
"""

import json
import os
import statistics
import time

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

from tests.small import compiled_step, small_experiment

LAYERS = (2, 48)


def main() -> None:
    """Prints, for each depth, CPU seconds from config to program and the number of the program's instructions."""
    compiled_step(small_experiment(**{"model.num_layers": 1}))  # whatever is only done once
    seconds: dict[int, list[float]] = {layers: [] for layers in LAYERS}
    instructions = {}
    for _ in range(3):
        for layers in LAYERS:
            began = time.process_time()
            compiled = compiled_step(small_experiment(**{"model.num_layers": layers}))
            seconds[layers].append(time.process_time() - began)
            instructions[layers] = compiled.as_text().count(" = ")
    print(json.dumps({layers: [statistics.median(seconds[layers]), instructions[layers]] for layers in LAYERS}))


if __name__ == "__main__":
    main()
