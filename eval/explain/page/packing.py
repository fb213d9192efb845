"""What a page holds of all heads within a budget of bytes, and what it leaves out."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.explain.page.content import Content, axes, shown
from eval.explain.page.quanta import SIDE, is_causal, pack, pack_largest, pooled
from model.errors import UserError
from train.run.files.json_files import dumps

BUDGET = 5_000_000  # bytes of a whole page
PAGE = 700_000  # of them what is text, program and pictures
FULL, FULL_BYTES = 12, 2_400_000  # heads whose maps are whole
LARGEST = 8  # cells of a row that are kept of other heads, at most
KEYS = 300  # bytes of JSON beside the numbers of what is added to a place
ESCAPES = str.maketrans({one: f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"})

Head = tuple[str, int, int]  # place, layer, head


@dataclasses.dataclass(frozen=True)
class Packed:
    """What the script of a page reads, and what of the input is not in it, in sentences."""

    data: dict[str, Any]
    left_out: tuple[str, ...]


def embedded(data: Any) -> str:
    """JSON that can stand between the tags of a script: no sign in it ends one, or begins markup."""
    return dumps(data).translate(ESCAPES)


def packed(content: Content, room: int, heads: Sequence[Head] = (), inputs: int = 1) -> Packed:
    """The arrays of one input in at most `room` bytes: of all heads pooled maps; of `heads`, or else of the most
    important ones, whole ones, as many as fit; of each row of the others the largest weights. Where a page has several
    `inputs`, whole maps are fewer.

    Raises:
        UserError: the pooled maps do not fit, or a head that there is not.
    """
    check(content, heads)
    data: dict[str, Any] = {
        "pieces": {site: [shown(piece) for piece in some] for site, some in content.pieces.items()},
        "place": content.place,
        "places": [_overview(content, place) for place in content.weights],
        "rollout": [],
        "products": None,
    }
    if (size := len(embedded(data))) > room:
        raise UserError(
            f"--budget: of the overview of all heads {size - room:,} bytes do not fit, for each input; give more, or "
            "a shorter input."
        )
    left = _add_rollout(content, data, room)
    left += _add_products(content, data, room)
    chosen = _add_full(content, data, min(room - len(embedded(data)), FULL_BYTES // inputs), heads)
    kept = _add_largest(content, data, room - len(embedded(data)), chosen)
    return Packed(data, (*left, *_said(content, heads, chosen, kept)))


def _overview(content: Content, place: str) -> dict[str, Any]:
    x_LHTS = content.weights[place]
    numbers = content.statistics.get(place, {})
    return {
        **_maps(place, x_LHTS, np.concatenate([pooled(x_HTS) for x_HTS in x_LHTS])),
        "heads": x_LHTS.shape[1],
        "statistics": {name: [float(f"{x:.4g}") for x in values.ravel()] for name, values in numbers.items()},
        "full": None,
        "largest": None,
    }


def _maps(place: str, x_LHTS: np.ndarray, small_NTS: np.ndarray) -> dict[str, Any]:
    """A place with its pooled maps, one for each layer and head."""
    (down, across), causal, signed = axes(place), is_causal(x_LHTS), bool((x_LHTS < 0).any())
    maps = {"down": small_NTS.shape[1], "across": small_NTS.shape[2], "data": pack(small_NTS, causal, signed)}
    names = {"name": place, "layers": len(x_LHTS), "down": down, "across": across, "causal": causal, "signed": signed}
    return {**names, "pooled": maps}


def _add_rollout(content: Content, data: dict[str, Any], room: int) -> list[str]:
    left = []
    for name, x_LTS in content.rollout.items():
        small_LTS = pooled(x_LTS)
        data["rollout"].append(_maps(name, x_LTS[:, None], small_LTS))
        if len(embedded(data)) > room:
            data["rollout"].pop()
            left.append(f"The rollout of {name} by layers: there was no room for it.")
        elif small_LTS.shape != x_LTS.shape:
            left.append(f"Single cells of the rollout of {name} by layers: its maps are pooled to {SIDE} a side.")
    return left


def _add_products(content: Content, data: dict[str, Any], room: int) -> list[str]:
    if (own := content.products) is None:
        return []
    told = {"place": own.place, "layer": own.layer, "head": own.head, "scale": own.scale, "width": own.q_TK.shape[1]}
    told |= {name: pack(x[None], signed=True) for name, x in (("queries", own.q_TK), ("keys", own.k_SK))}
    data["products"] = told
    if len(embedded(data)) <= room:
        return []
    data["products"] = None
    return ["Queries and keys: there was no room for them."]


def _add_full(content: Content, data: dict[str, Any], room: int, heads: Sequence[Head]) -> list[Head]:
    """The heads whose maps are added whole: in their order, as long as they fit."""
    places, chosen = {one["name"]: one for one in data["places"]}, list[Head]()
    room -= KEYS * len(places)
    for place, layer, head in [one for one in heads or ranked(content) if not _whole(content, one[0])][:FULL]:
        one = places[place]
        text = pack(content.weights[place][layer, head][None], one["causal"], one["signed"])
        if len(text) + 20 > room:
            break
        room -= len(text) + 20
        one["full"] = one["full"] or {"heads": [], "data": []}
        one["full"]["heads"].append([layer, head])
        one["full"]["data"].append(text)
        chosen.append((place, layer, head))
    return chosen


def ranked(content: Content) -> list[Head]:
    """All heads, the most important first; where nothing is known of that, in their order."""
    keyed = []
    for place, x_LHTS in content.weights.items():
        known_LH = content.statistics.get(place, {}).get("importance", np.zeros(x_LHTS.shape[:2]))
        keyed += [(-float(known_LH[at]), (place, *at)) for at in np.ndindex(known_LH.shape)]
    return [head for _, head in sorted(keyed, key=lambda one: one[0])]


def _add_largest(content: Content, data: dict[str, Any], room: int, chosen: Sequence[Head]) -> int:
    """How many of each row's cells are added of the heads that are not whole."""
    rest = {
        one["name"]: [at for at in np.ndindex(one["layers"], one["heads"]) if (one["name"], *at) not in {*chosen}]
        for one in data["places"]
        if not _whole(content, one["name"])
    }
    rows = sum(len(heads) * content.weights[name].shape[2] for name, heads in rest.items())
    spent = KEYS * len(rest) + 20 * sum(map(len, rest.values()))
    k = min(int(((room - spent) * 3 / 4 / max(rows, 1) - 2) // 3), LARGEST)
    if not rows or k < 1:
        return 0
    for one in data["places"]:
        if heads := rest.get(one["name"], []):
            x_LHTS = content.weights[one["name"]]
            size = min(k, x_LHTS.shape[3])
            texts = [pack_largest(x_LHTS[at][None], size, one["signed"]) for at in heads]
            one["largest"] = {"k": size, "heads": [[*at] for at in heads], "data": texts}
    return k


def _whole(content: Content, place: str) -> bool:
    """Whether pooled maps are whole ones."""
    return max(content.weights[place].shape[2:]) <= SIDE


def check(content: Content, heads: Iterable[Head]) -> None:
    """Lets heads pass that there are.

    Raises:
        UserError: there is none of that place, layer and number.
    """
    for place, layer, head in heads:
        L, H = content.weights[place].shape[:2] if place in content.weights else (0, 0)
        if not (0 <= layer < L and 0 <= head < H):
            known = "; ".join(f"{name} has {x.shape[0]} layers of {x.shape[1]}" for name, x in content.weights.items())
            raise UserError(f"--heads={place}.{layer}.{head} is no head of this model: {known}.")


def _said(content: Content, heads: Sequence[Head], chosen: Sequence[Head], kept: int) -> list[str]:
    pooled = [x for place, x in content.weights.items() if not _whole(content, place)]
    count = sum(x.shape[0] * x.shape[1] for x in pooled)
    if len(chosen) == count:
        return []
    rest = f"of each row of them the {kept} largest weights are here" if kept else "of them only pooled maps are here"
    missing = [f"{one[0]}.{one[1]}.{one[2]}" for one in heads if one not in chosen and not _whole(content, one[0])]
    asked = f" There was no room for {', '.join(missing)}." if missing else ""
    return [
        f"Whole maps of {count - len(chosen)} of the {count} heads: {rest}.{asked} --heads chooses others, and "
        "--arrays=FILE.safetensors keeps all."
    ]
