"""Which explanations find what a label stands on, where that is known: all three letters of a group, among twenty.

Arms train the same and differ in what is to name the three tokens: gradients or attention of the model, or what knows
nothing of it: random numbers, and how often each letter stands in its text. The last one is the falsifier: letters of a
group never stand twice, so a map that no model has a part in must lose to random numbers. Where it does not, nothing
that this finds is to be believed.

Expected: integrated gradients and gradient x attention better than random numbers by far (at least .9 where random
numbers find .15), as each of the three letters is needed and the others of the groups speak against the label; weights,
rollout and flow better, but less, as a model that looks at a letter may do so to deny the label: one that looks at all
seven letters of groups alike finds .43; counts worse. Two arms were tried on seeds 0 to 7: integrated gradients .92,
flow .84.

Seen (2026-11-27, two cores of an AMD EPYC that others used too, jax 0.10.2, 7 minutes; means over 8 seeds with their
95 % intervals): all verdicts as expected, and gradient x attention far less than expected.

    counts                .001 (.001 to .001)   WORSE
    random                .132 (.120 to .143)
    attention_gradient    .457 (.385 to .529)   BETTER
    raw_weights           .646 (.616 to .677)   BETTER
    rollout               .749 (.715 to .784)   BETTER
    flow                  .805 (.719 to .892)   BETTER
    integrated_gradients  .923 (.867 to .979)   BETTER

The band of 8 seeds of random numbers is .133 to .167; 1000 maps of them find .150. Gradients at a text itself, where
the label is all but certain, are nearly nothing: of the label against `none` gradient x attention finds .71, where it
finds .51 of the label's logit (seed 10, looked at afterwards).

    .venv/bin/python -m launch.ablate --plan=configs/ablations/rationale.py --workdir=runs/ablations
"""


def get_plan() -> dict[str, object]:
    """Returns what is declared."""
    key = "objective.explained_by"
    return {
        "question": "Which explanations find the three letters that a label stands on?",
        "factor": key,
        "arms": {
            "random": {key: "random"},
            "counts": {key: "counts"},
            "raw_weights": {key: "raw_weights"},
            "rollout": {key: "rollout"},
            "flow": {key: "flow"},
            "attention_gradient": {key: "attention_gradient"},
            "integrated_gradients": {key: "integrated_gradients"},
        },
        "base": "bert:rationale",
        "endpoint": "val/precision_at_k",
        "direction": "higher",
        "smallest": 0.05,
        "seeds": range(10, 18),
    }
