"""What stands on a page, in its order: the question, the word, the evidence, and what it does not speak of."""

from eval.verdict.decision import BELOW, BETTER, EQUIVALENT, INVALID, UNCLEAR, WORSE, Verdict
from eval.verdict.declared import Results
from eval.verdict.page.blocks import Block, Command, Grid, Heading, Items, Line, Picture
from eval.verdict.page.evidence import budgets, every_seed, exploratory, failures, learning, numbers
from eval.verdict.page.figures import Dots, dots, number
from eval.verdict.page.saying import basis, between, by_seed, level, number_or, plain_of, unit, word
from eval.verdict.page.shown import Shown

KINDS = {BETTER: "good", WORSE: "bad", BELOW: "same", EQUIVALENT: "same", UNCLEAR: "", INVALID: "bad"}


def page(verdict: Verdict, results: Results, shown: Shown) -> list[Block]:
    """All blocks of the page of a verdict on these results."""
    return [
        Heading(verdict.declared.question, 1),
        *answer(verdict),
        *_limits(verdict, shown),
        Heading("Numbers"),
        *numbers(verdict),
        *every_seed(verdict, results),
        *failures(verdict),
        *learning(verdict, shown),
        *budgets(shown),
        *_declared(verdict, shown),
        *_commands(shown),
        *exploratory(verdict, shown),
    ]


def answer(verdict: Verdict) -> list[Block]:
    """The word of each contrast, what it rests on in a sentence, and the intervals on one line with D marked."""
    blocks: list[Block] = []
    for row in verdict.rows:
        blocks += [Line(f"{row.contrast.name}: {word(row)}", f"word {KINDS[row.word]}".strip())]
        said = row.sentences[1:] if verdict.gates else row.sentences  # the first names the gates, once is enough
        blocks.append(Line(" ".join([basis(row, verdict), *said])))
    if verdict.gates:
        blocks += [Line("Invalid, because gates failed:"), Items(verdict.gates)]
    rows = [
        Dots(row.contrast.name, by_seed(row), row.difference, row.interval, row.interval_95, f": {word(row)}")
        for row in verdict.rows
    ]
    declared, faint = verdict.declared, "" if level(verdict) == "95 %" else ", a faint one at 95 %"
    failed = any(row.difference is None for row in verdict.rows)
    edge = "; a cross is a pair of which one seed failed, one of which both did is at 0" if failed else ""
    edge += ", and such a row has no mean or interval" if failed else ""
    words = (
        f"Differences in {unit(verdict)}, {declared.good_sign} is better: a dot for each seed, their mean, the "
        f"interval at {level(verdict)}{faint}; the band is from -D to D, D = {number(declared.smallest)}{edge}."
    )
    told = "; ".join(f"{row.contrast.name} {number_or(row.difference)} {between(row.interval)}" for row in verdict.rows)
    return [*blocks, Picture(dots(rows, f"{words} {told}", declared.smallest, declared.good_sign), words)]


def _limits(verdict: Verdict, shown: Shown) -> list[Block]:
    """What the reader must know before believing the word."""
    blocks: list[Block] = []
    if shown.notes:
        blocks += [Heading("To know"), Items(shown.notes)]
    if shown.waived:
        blocks.append(Grid("Gates that the plan waives", ["gate", "reason"], list(shown.waived.items()), False))
    if shown.unchecked:
        blocks += [Heading("Not checked"), Line("These could not be checked, and are no part of the verdict:")]
        blocks.append(Items(shown.unchecked))
    tested = [
        f"Other endpoints than {verdict.declared.endpoint}, and other seeds, budgets and data than those below.",
        "Arms against each other: each row is only what its name says.",
    ]
    return [*blocks, Heading("Not tested"), Items([*tested[: 1 + (len(verdict.rows) > 1)], *shown.not_tested])]


def _declared(verdict: Verdict, shown: Shown) -> list[Block]:
    declared = verdict.declared
    rows = {
        "endpoint": declared.endpoint,
        "better": declared.direction,
        "smallest effect of interest, D": number(declared.smallest),
        "alpha": number(declared.alpha),
        "seeds by look": ", ".join(map(str, declared.looks)),
    }
    if declared.success is not None:
        rows["success threshold"] = number(declared.success)
    if verdict.open:
        rows["left to the next look"] = ", ".join(verdict.open)
    rows |= {name: plain_of(value) for name, value in shown.plan.items()}
    blocks: list[Block] = [
        Heading("Declared"),
        Grid("Before the numbers were seen", ["", "value"], [*rows.items()], False),
    ]
    if shown.looked:
        counts = [[name, str(count)] for name, count in shown.looked.items()]
        blocks.append(Grid("What was looked at how often, for this question", ["", "count"], counts))
    return blocks


def _commands(shown: Shown) -> list[Block]:
    if not shown.commands:
        return []
    return [Heading("Reproduce"), *(Command(name, line) for name, line in shown.commands.items())]
