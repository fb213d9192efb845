"""Does a window in every other layer cost anything?

Hybrid stacks (Gemma 2 and 3, gpt-oss) let most layers see a window only. The first of two layers here sees 16 of 64
tokens (its own and 15 before it), the second all of them.

Expected: equivalent within D, since most of what helps with 64 bytes is near.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/cycle.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    return {
        "question": "Do a layer that sees 16 tokens and one that sees all predict worse than two that see all?",
        "factor": "model.mask",
        "arms": {"full": {}, "window": {"model.mask": "(causal & window(15)) + causal"}},
        "base": "gpt:ablation",
        "endpoint": "val/bits_per_byte",
        "direction": "lower",
        "smallest": "1 %",
        "seeds": range(8),
        "pilot_seeds": range(100, 104),
        "tune_seeds": range(200, 202),
        "learning_rates": [3e-3, 1e-2, 3e-2, 1e-1],
    }
