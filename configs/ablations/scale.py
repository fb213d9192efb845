"""Do scores need their scale?

Vaswani et al. (2017, section 3.2.1) divide q k by the root of the head width, since sums of K independent products
have the variance K, which would saturate the softmax. Training may undo a missing scale by smaller projections: then
each arm at its own best learning rate differs little, and least where K is small. Here K is 12.

Expected: without the scale about equal, or below D; with 1/K, as for muP, the same.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/scale.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    return {
        "question": "Does the scale of the scores, 1/sqrt(K), matter when each arm has its own best learning rate?",
        "factor": "model.scale",
        "arms": {"root": {}, "none": {"model.scale": 1.0}, "whole": {"model.scale": 1 / 12}},
        "base": "gpt:ablation",
        "endpoint": "val/bits_per_byte",
        "direction": "lower",
        "smallest": "1 %",
        "seeds": range(8),
        "pilot_seeds": range(100, 104),
        "tune_seeds": range(200, 202),
        "learning_rates": [3e-3, 1e-2, 3e-2, 1e-1],
    }
