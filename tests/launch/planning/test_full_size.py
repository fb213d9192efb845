"""Every full-size config for the slices that its story names, by the real compiler for TPUs: `make test-tpu`.

Each is compiled as committed, with the flags of `launch.plan` that the story shows, and compared with its figures.
"""

import re
import shlex

import pytest

from launch import cli, plan
from launch.configs import load
from launch.planning.chips import parse_topology
from tests.launch.test_configs import STORIES
from tests.train.test_tpu import needs_compiler

FULL_SIZE = 10**6  # layers x width^2, from which on nobody trains on two cores
_MEASURED = r", ([\d.]+) of ([\d.]+) GB a device, ([\d.]+) GB sent(?:, ([\d.]+) between slices)?"
FIGURES = re.compile(rf"^(--topology=.*):\s+(\d+) rows(?:{_MEASURED})?$", re.MULTILINE)
CASES = [(config, *figures) for config, story in STORIES.items() for figures in FIGURES.findall(story)]
# Peak, against MaxText's 6.88, 15.62, 14.75 and 11.45 (0.65 of them, v6e: 0.75), and bytes that are sent, in GB.
BARS = {
    "v5e:16x16": (0.65 * 6.88, 45.5),
    "v5p:4x4x4": (0.65 * 15.62, 44.3),
    "tpu7x:4x4x4": (0.65 * 14.75, 32.2),
    "v6e:16x16": (0.75 * 11.45, 44.3),
}


def full_size(config: str) -> bool:
    model = load(config).model
    return bool(model.num_layers * model.width**2 >= FULL_SIZE)


def test_every_full_size_config_names_its_slice() -> None:
    """With its rows; and with memory, what is sent and a date, where the compiler has been asked."""
    found = {config for config in STORIES if full_size(config)}
    assert len(found) >= 20
    assert found == {config for config, *_ in CASES}
    assert any("--slices=2" in flags for _, flags, *_ in CASES)
    for config, _, _, peak, *_ in CASES:
        dated = re.search(r"By the compiler for TPUs \(`make test-tpu`, \d{4}-\d\d-\d\d\)", STORIES[config])
        assert bool(dated) == bool(peak), config


@pytest.mark.rest
@pytest.mark.tpu
@needs_compiler
@pytest.mark.parametrize(("config", "words", "rows", "peak", "limit", "sent", "between"), CASES)
def test_a_full_size_config_fits_its_slice(
    config: str, words: str, rows: str, peak: str, limit: str, sent: str, between: str
) -> None:
    """And never has all logits at once, where it is said to make them in slices; the line printed is the story's."""
    flags, overrides = cli.parse(plan.parser(), [f"--config={config}", *shlex.split(words)])
    changed = load(flags.config, **overrides)
    found = plan.plan(changed, parse_topology(flags.topology, flags.slices))
    print(
        f"\n{config}\n{words}: {changed.data.batch_size} rows, {found['needed_bytes'] / 1e9:.2f} of "
        f"{found['hbm_bytes'] / 1e9:.2f} GB a device, {(found.get('collective_bytes') or 0) / 1e9:.2f} GB sent, "
        f"{(found.get('slow_bytes') or 0) / 1e9:.2f} between slices"
    )
    assert found["fits"]
    assert changed.data.batch_size == int(rows)
    assert found["whole_logits"] == (found["logits_again_flops_per_token"] == 0)
    if peak:
        assert found["peak_bytes"] == pytest.approx(float(peak) * 1e9, rel=0.02, abs=1e7)
        assert found["hbm_bytes"] == pytest.approx(float(limit) * 1e9, rel=0.01)
        assert found["collective_bytes"] == pytest.approx(float(sent) * 1e9, rel=0.02, abs=1e7)
        assert found["slow_bytes"] == pytest.approx(float(between or 0) * 1e9, rel=0.02, abs=1e7)
    if config == "configs/gpt.py:llama_8b" and flags.slices == 1:
        highest, most = BARS[flags.topology]
        assert found["peak_bytes"] <= highest * 1e9
        assert found["collective_bytes"] <= most * 1e9
