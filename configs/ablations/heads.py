"""Is one head as good as many?

Vaswani et al. (2017, table 3, rows A) found one head .9 BLEU below eight at the same width. H heads of K = D / H have
the same parameters and the same FLOPs whatever H is, so nothing needs to be matched.

Expected: one head worse by more than D; twelve heads of width 4 not better than four.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/heads.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    return {
        "question": "Do several heads predict better than one, at equal parameters?",
        "factor": "model.num_heads",
        "arms": {"four": {}, "one": {"model.num_heads": 1}, "twelve": {"model.num_heads": 12}},
        "base": "gpt:ablation",
        "endpoint": "val/bits_per_byte",
        "direction": "lower",
        "smallest": "1 %",
        "seeds": range(8),
        "pilot_seeds": range(100, 104),
        "tune_seeds": range(200, 202),
        "learning_rates": [3e-3, 1e-2, 3e-2, 1e-1],
    }
