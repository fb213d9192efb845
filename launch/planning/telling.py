"""Plans in words."""

from collections.abc import Sequence
from typing import Any

from launch.planning import rates

QUICK = (  # three steps of llama_8b and gpt2 on v5e and v5p, whose compiling took 0.25 to 0.5 of the time
    "at the compiler's low effort, and no final answer: of three steps it said 2 % less to 17 % more memory, and "
    "60 to 64 % more sent"
)


def told(found: dict[str, Any]) -> str:
    """A plan in words."""
    slices = f"{found['slices']} slices of " if found["slices"] > 1 else ""
    mesh = " x ".join(f"{axis}={size}" for axis, size in found["mesh"].items() if size > 1) or "one device"
    fits = "fits" if found["fits"] else "DOES NOT FIT"
    lines = [
        f"{slices}{found['topology']}, {found['devices']} devices ({mesh}), {found['parameters']:,} parameters, "
        f"{found['tokens_per_step']:,} tokens a step",
        f"  memory      {gib(found['needed_bytes'])} of {gib(found['hbm_bytes'])} a device: {fits}",
    ]
    if classes := found.get("classes"):
        lines += [f"    {name.replace('_', ' '):<18} {gib(size):>10}" for name, size in classes.items() if size > 0]
    lines.append(
        f"  products    {found['flops_per_token']:.4g} FLOPs a token (6 x matrix parameters + 12 x keys seen x H K x "
        "layers; causal once, nothing that is done again)"
    )
    if again := found.get("logits_again_flops_per_token"):
        lines.append(f"    logits made again  {again:.4g} more")
    if executed := found.get("executed_flops_per_token"):
        lines.append(f"    executed           {executed:.4g}, with all that the program does again")
    elif note := found.get("executed_note"):
        lines.append(f"    executed           guessed, for {note}")
    if found.get("collective_bytes") is not None:
        kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in found["collective_bytes_by_kind"].items())
        lines.append(
            f"  sent        {found['collective_bytes'] / 1e9:.2f} GB a step ({kinds}); on the wire "
            f"{found['wire_bytes'] / 1e9:.2f}; {found['asynchronous_bytes'] / 1e9:.2f} beside other work"
        )
        if found["slow_bytes"]:
            lines.append(f"  between     slices {found['slow_bytes'] / 1e9:.3f} GB a step over the slow network")
    else:
        lines.append(
            f"  sent        unknown: {found.get('collective_note', 'the compiler makes no program that does not fit')}"
        )
    for name, size in found["replicated_bytes"].items():
        lines.append(f"  replicated  {name}: {gib(size)} on each device")
    for name, size in found.get("replicated_batches", {}).items():
        lines.append(f"  whole batch {name}: {gib(size)} on each device")
    if found["labels"]:
        lines.append(f"  classes     {found['labels']} are taken, as their number is only known from the data")
    if "effort" in found:
        lines.append(f"  QUICK       {QUICK}")
    if "model" in found:
        known = rates.PARTS if found.get("collective_bytes") is not None else ("products", "memory")
        parts = ", ".join(f"{name} {found['model'][name]:.3g}" for name in known if found["model"][name])
        lines.append(f"  a step      {found['model']['seconds_per_step']:.3g} s{_mended(found['model'])} ({parts})")
        if "against" in found:
            lines.append(f"  against     {_beside(found['against'])}")
        lines.append(f"  the run     {found['steps']:,} steps: {of_run(found)}")
    return "\n".join(lines)


def of_run(found: dict[str, Any]) -> str:
    """Chip-hours, cost and energy in words."""
    cost = "unknown (--price)" if found["cost"] is None else f"{_number(found['cost'])} USD"
    energy = "unknown (--watts)" if found["energy_kwh"] is None else f"{_number(found['energy_kwh'])} kWh"
    least = "" if found["model"]["fitted"] else " at least"
    return f"{_number(found['chip_hours'])} chip-hours{least}; cost {cost}, energy {energy}"


def _mended(model: dict[str, Any]) -> str:
    """What a step's seconds are."""
    said = f"{'' if model['fitted'] else ' at least'}, a model and not measured"
    if not (origin := model["factor_origin"]):
        return said
    return f"{said}, x{model['factor']:.3g} by {origin['run']} ({origin['date']})"


def _beside(one: dict[str, Any]) -> str:
    """What a run took beside what its plan said before."""
    sizes = ("unknown" if size is None else gib(size) for size in (one["predicted_peak_bytes"], one["peak_bytes"]))
    return (
        f"{one['run']} ({one['date']}, {one['steps']} steps on {one['devices']} x {one['device_kind']}): a step "
        f"{one['predicted_seconds']:.3g} s predicted and {one['measured_seconds']:.3g} s measured; memory "
        f"{' predicted and '.join(sizes)} measured"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def shardings(placements: Sequence[dict[str, Any]]) -> str:
    """Where each parameter lies, a line each: its axes with their sizes, over which axes of the mesh they are spread,
    and the bytes of a device's part; then its moments, where they lie otherwise.
    """
    width, lines = max(len(one["name"]) for one in placements), []
    for one in placements:
        axes, moments = (_axes(one, spec) for spec in (one["spec"], one["moments"]))
        other = f"; moments {moments}" if moments != axes else ""
        lines.append(f"{one['name']:<{width}}  {gib(one['bytes']):>11}  {axes}{other}")
    return "\n".join(lines)


def _axes(one: dict[str, Any], spec: Sequence[str]) -> str:
    places = [*spec, *["whole"] * (len(one["shape"]) - len(spec))]
    return ", ".join(
        f"{axis or 'layers'}={size}" + (f" over {place}" if place != "whole" else "")
        for axis, size, place in zip(one["axes"], one["shape"], places, strict=True)
    )


def table(plans: Sequence[dict[str, Any]]) -> str:
    """Several plans, a line each."""
    lines = [f"{'topology':<16}{'fits':<6}{'memory':>12}{'of':>12}{'sent GB':>10}{'s a step':>10}{'chip-hours':>14}"]
    for one in plans:
        sent = "?" if one.get("collective_bytes") is None else f"{one['collective_bytes'] / 1e9:.1f}"
        lines.append(
            f"{one['topology']:<16}{'yes' if one['fits'] else 'no':<6}{gib(one['needed_bytes']):>12}"
            f"{gib(one['hbm_bytes']):>12}{sent:>10}{one['model']['seconds_per_step']:>10.3g}{one['chip_hours']:>14,.0f}"
        )
    return "\n".join(lines)


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"
