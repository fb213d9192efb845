"""Does an output gate help, when its parameters are taken from the MLP?

Qiu et al. (2025) report that a gate on the output of attention, computed from its input, lowers the loss and removes
sinks. It has D x H K parameters in each layer, which `match` takes from the MLP.

Expected: better, by less than D at this size.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/gate.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    return {
        "question": "Does an output gate predict better than an MLP of as many more parameters?",
        "factor": "model.edits",
        "arms": {"plain": {}, "gated": {"model.edits": "output_gate"}},
        "base": "gpt:ablation",
        "endpoint": "val/bits_per_byte",
        "direction": "lower",
        "smallest": "1 %",
        "seeds": range(8),
        "pilot_seeds": range(100, 104),
        "tune_seeds": range(200, 202),
        "learning_rates": [3e-3, 1e-2, 3e-2, 1e-1],
        "budget": "parameters",
        "match": "mlp_width",
    }
