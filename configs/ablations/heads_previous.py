"""Do heads specialise: does one come to look at the token before?

Arms train the same and differ in whose heads are scored, on random tokens that repeat themselves: those of the model;
of the model with parameters drawn anew; and its own again, where a place behind that is drawn by chance stands for the
one before. Of all heads the one is taken that does it most, which chance makes large, too: that is what the controls
are for. Heads that look at the token before are found in trained models of all kinds (Clark et al. 2019, "What Does
BERT Look At?"; Olsson et al. 2022, "In-context Learning and Induction Heads"); `heads_prefix.py` asks after the others
of Olsson et al.

Expected: both controls worse by more than .3, in 100 steps: .73 and .65 were seen of two seeds, 0 and 1, beforehand.

Seen (2026-11-27, two cores of an AMD EPYC that eight processes shared, jax 0.10.2, 2.6 minutes of one core): untrained
WORSE by .514 (97.5 %: .322 to .707; 8 seeds, p = .016), shuffled WORSE by .506 (.311 to .700). Trained .579, the mean
of seeds from .209 to .905; untrained .064, shuffled .073.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/heads_previous.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    key = "objective.control"
    return {
        "question": "Does a head come to look at the token before?",
        "factor": key,
        "arms": {"trained": {}, "untrained": {key: "untrained"}, "shuffled": {key: "shuffled"}},
        "base": "gpt:ablation",
        "shared": {
            "task": "heads",
            "train.steps": 100,
            "train.evaluate_every": 100,
            "train.checkpoint_every": 100,
            "train.evaluate_windows": 64,
        },
        "endpoint": "val/previous_token",
        "direction": "higher",
        "smallest": 0.05,
        "seeds": range(10, 18),
    }
