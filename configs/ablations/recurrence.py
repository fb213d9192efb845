"""Attention or recurrence, where the answer is known: the parity of a string of bits.

An encoder-decoder of attention and one of an LSTM that is read by additive attention learn, at equal parameters (by
the MLP of the first), from strings of 1 to 10 bits, whether strings of 11 to 20 have an even or an odd number of ones.
A state carries that along; a few layers of attention cannot tell it in general (Hahn 2020; Deletang et al. 2023). So
this is the falsifier of all comparisons of the two: where it does not find attention worse, by far, nothing that they
find is to be believed.

Expected: attention worse by more than .1, and recurrence near 1.

Seen (2026-11-26, two cores of an AMD EPYC that others used too, jax 0.10.2, about 15 minutes): attention WORSE by .415
(95 %: .339 to .490; 6 seeds, p = .031), at .585, the mean of its seeds, where recurrence is at 1.000 with each.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/recurrence.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    return {
        "question": "Does attention tell the parity of bits as recurrence does, at equal parameters?",
        "factor": "family",
        "arms": {"recurrence": {}, "attention": {"family": "encoder_decoder"}},
        "base": "recurrent:parity",
        "endpoint": "val/exact_match",
        "direction": "higher",
        "smallest": 0.05,
        "seeds": range(6),
        "pilot_seeds": range(100, 103),
        "tune_seeds": range(200, 202),
        "learning_rates": [1e-3, 3e-3, 1e-2],
        "budget": "parameters",
        "match": "mlp_width",
    }
