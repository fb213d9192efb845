"""How a page looks: one style sheet, whose colours are variables with a value in light and another in dark."""

# Text has a contrast of at least 4.5 with `paper` and with `band`; marks have one of at least 3.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1d21",
    "quiet": "#5b616b",
    "rule": "#c9ced6",
    "band": "#eef1f5",
    "arm0": "#5b616b",
    "arm1": "#b3470b",
    "arm2": "#1f62a8",
    "arm3": "#71468f",
    "good": "#176b36",
    "bad": "#a5221f",
    "same": "#1f62a8",
}
DARK = {
    "paper": "#15171a",
    "ink": "#e8eaed",
    "quiet": "#a3a9b3",
    "rule": "#454b55",
    "band": "#23272d",
    "arm0": "#a3a9b3",
    "arm1": "#f2a15f",
    "arm2": "#7fb6f0",
    "arm3": "#c9a1e6",
    "good": "#79cf94",
    "bad": "#f58b84",
    "same": "#7fb6f0",
}

_RULES = """
.heed { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
.heed { padding: .75rem; } .heed > :first-child { margin-top: 0; }
.heed h1 { font-size: 1.6rem; line-height: 1.25; } .heed h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.heed p.word { font-size: 1.25rem; font-weight: 700; margin: .5rem 0 0; }
.heed p.good { color: var(--good); } .heed p.bad { color: var(--bad); } .heed p.same { color: var(--same); }
.heed .wide { overflow-x: auto; margin: .5rem 0 1rem; }
.heed table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
.heed td { font-variant-numeric: tabular-nums; }
.heed caption { text-align: left; color: var(--quiet); padding-bottom: .25rem; white-space: nowrap; }
.heed th, .heed td { border-bottom: 1px solid var(--rule); padding: .25rem .6rem; text-align: right; }
.heed th, .heed td { color: var(--ink); }
.heed table.words td, .heed table.words th, .heed th:first-child { text-align: left; }
.heed th:first-child { padding-left: 0; } .heed th.long { min-width: 11rem; }
.heed tr, .heed thead { background: var(--paper); }
.heed pre { background: var(--band); color: var(--ink); padding: .6rem; font: .8125rem/1.4 ui-monospace, monospace; }
.heed figure { margin: .5rem 0 1rem; } .heed figcaption { color: var(--quiet); font-size: .875rem; }
.heed svg.figure { display: block; }
.heed svg text { fill: var(--quiet); font-size: 12px; } .heed svg text.name { fill: var(--ink); font-size: 13px; }
.heed svg text.failed { fill: var(--bad); }
.heed svg text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.heed svg .band { fill: var(--band); } .heed svg .edge { stroke: var(--quiet); stroke-dasharray: 3 3; }
.heed svg .zero, .heed svg .axis { stroke: var(--quiet); } .heed svg .grid { stroke: var(--rule); }
.heed svg .wide { stroke: var(--ink); stroke-width: 3; }
.heed svg .narrow { stroke: var(--quiet); stroke-width: 7; opacity: .45; }
.heed svg .middle { stroke: var(--arm1); stroke-width: 3; }
.heed svg .seed { fill: var(--arm2); fill-opacity: .65; stroke: var(--paper); }
.heed svg .curve { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; } .heed svg .spread { opacity: .22; }
.heed svg .curve.arm0 { stroke-dasharray: 6 4; }
"""
_ARMS = "".join(
    f".heed svg .curve.arm{at} {{ stroke: var(--arm{at}); }} .heed svg .spread.arm{at} {{ fill: var(--arm{at}); }}\n"
    for at in range(4)
)
_PAGE = "body.heed { margin: 0 auto; max-width: 56rem; padding: 1rem 1rem 3rem; }\nhtml { background: var(--paper); }\n"


def _variables(where: str, colors: dict[str, str]) -> str:
    return f"{where} {{ {' '.join(f'--{name}: {color};' for name, color in colors.items())} }}\n"


def style(where: str) -> str:
    """The style sheet of all that stands in an element of class `heed`; `where` is what gets the colours."""
    dark = f"@media (prefers-color-scheme: dark) {{ {_variables(where, DARK)}}}\n"
    return _variables(where, LIGHT) + dark + _RULES.lstrip() + _ARMS + (_PAGE if where == ":root" else "")
