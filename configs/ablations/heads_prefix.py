"""Do heads specialise: does one come to look at what came after a token that is equal to its own?

As `heads_previous.py`, whose runs it shares: of the trained model, of one with parameters drawn anew, and at places
that are drawn by chance. Such heads copy what followed the last time, and form all at once (Olsson et al. 2022,
"In-context Learning and Induction Heads", who define them by this score, in their models between 2.5 and 5 billion
tokens).

Expected: nothing of it here, all equivalent within .05: 0.4M bytes in rows of 64 are few, and hold few repetitions. Of
two seeds, 0 and 1, .02 and .03 were seen beforehand; a run of `gpt:quickstart` has .03, as if it were untrained.

Seen (2026-11-27, in the runs of `heads_previous.py`): untrained EQUIVALENT WITHIN D (-.002; 97.5 %: -.017 to .012; 8
seeds), shuffled too (-.005; -.023 to .014). Trained .032, untrained .030, shuffled .027.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/heads_prefix.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    key = "objective.control"
    return {
        "question": "Does a head come to look at what came after an equal token?",
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
        "endpoint": "val/prefix_matching",
        "direction": "higher",
        "smallest": 0.05,
        "seeds": range(10, 18),
    }
