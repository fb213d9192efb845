"""Pictures of maps for where no script runs: on paper, in a notebook on GitHub, in a browser that forbids them."""

import io

import numpy as np
from matplotlib.figure import Figure

from eval.attention_picture import COLORS, NORM
from eval.explain.page.content import Content
from eval.explain.page.quanta import pooled

SIDES = (64, 32, 16)  # cells of a side of a map, of which the most are taken that fit


def overviews(content: Content, room: int) -> tuple[dict[str, bytes], list[str]]:
    """For each place one PNG of all heads, and of the rollout (`rollout.stack`) one of all layers, in at most `room`
    bytes together; and those for which there is none.
    """
    found, missing = dict[str, bytes](), list[str]()
    rolled = {f"rollout.{name}": x_LTS[None] for name, x_LTS in content.rollout.items()}
    for number, (place, x_LHTS) in enumerate((maps := {**content.weights, **rolled}).items()):
        share = (room - sum(map(len, found.values()))) // (len(maps) - number)
        made = (overview(x_LHTS, side) for side in SIDES)
        fitting = next((picture for picture in made if len(picture) <= share), None)
        if fitting is not None:
            found[place] = fitting
        else:
            missing.append(f"The picture of {place} for browsers without scripts: there was no room for it.")
    return found, missing


def overview(x_LHTS: np.ndarray, side: int) -> bytes:
    """A PNG of all maps, (rows, columns, T, S): the square root of each weight's part of the largest of its map."""
    (L, H), step = x_LHTS.shape[:2], side + 2
    mosaic = np.full((L * step, H * step), np.nan, np.float32)  # one image: a panel for each head takes seconds
    for layer in range(L):
        for head, x_TS in enumerate(pooled(np.abs(np.asarray(x_LHTS[layer], np.float32)), side)):
            down, across = (np.arange(side) * size // side for size in x_TS.shape)
            rows, columns = slice(layer * step, layer * step + side), slice(head * step, head * step + side)
            mosaic[rows, columns] = x_TS[down][:, across] / max(float(x_TS.max()), 1e-30)
    left, top, inches = 0.4, 0.3, np.array(mosaic.shape) / 80
    high, wide = top + inches[0], left + inches[1]
    figure = Figure(figsize=(wide, high), dpi=80)
    axes = figure.add_axes((left / wide, 0, 1 - left / wide, 1 - top / high))
    axes.imshow(mosaic, norm=NORM, cmap=COLORS, interpolation="nearest", aspect="auto")
    axes.set_xticks(np.arange(H) * step + side / 2, [str(head) for head in range(H)], fontsize=8)
    axes.set_yticks(np.arange(L) * step + side / 2, [str(layer) for layer in range(L)], fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure's bytes; they name no program and no address."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
