"""What each layer and head looks at, as one picture."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from eval.generation import generate
from eval.prompting import prompt_tokens
from model.attention.masks.looking import looks_ahead
from model.errors import UserError
from model.families.encoder_decoder import Pairs
from model.families.family import Model
from model.inspection import attention_weights
from train.data import Tokenizer, sentinels
from train.devices.placing import batch_ways, on_host

LABELLED = 40  # at most so many tokens are written beside the axes: more cannot be read
SHOWN = {"\n": "↵", " ": "·", "\t": "→"}
NORM = PowerNorm(0.5, 0, 1)  # the square root of a weight, so that weak ones are seen
SHARES = 1.01  # a share may be rounded in half precision; what is larger is none
COLORS, MASKED = "viridis", "white"


def attention_figure(model: Model, tokenizer: Tokenizer, prompt: str) -> Figure:
    """One panel per layer (rows) and head (columns): how much each token of the prompt (down) looks at each (across).

    The first token is the end of the document before, as in training. What a causal model cannot see is left white. Of
    a model of pairs, how much each token that it likeliest writes looks at each of the prompt.
    `attention_figure(...).savefig('attention.png')` writes the picture; a notebook shows it by itself.

    Raises:
        UserError: an empty prompt, one with a character outside of the vocabulary, or one longer than the model takes,
            or a model without attention.
    """
    check_looks(model)
    if "target" in model.config.HEADS:
        return _figure_across(model, tokenizer, prompt)
    tokens = prompt_tokens(tokenizer, prompt)
    if len(tokens) > model.config.max_length:
        most = model.config.max_length
        raise UserError(f"the prompt has {len(tokens) - 1} tokens, and the model takes fewer than {most}; shorten it.")
    weights_LBHTS = on_host(_weights(*nnx.split(model), np.array(batch_ways() * [tokens])))
    weights_LHTS = np.asarray(weights_LBHTS[:, 0], np.float32)
    site, labels = model.config.sites["self"], [token_label(tokenizer, token) for token in tokens]
    ahead = any(looks_ahead(site.mask(place), model.config.max_length) for place in range(site.stack.unit))
    return draw(weights_LHTS, labels, prompt, labels if ahead else None)


def check_looks(model: Model) -> None:
    """Lets a model pass of whose attention there is a picture.

    Raises:
        UserError: it has none.
    """
    if "target" not in model.config.HEADS and not model.config.sites:
        raise UserError("the model has no attention, of which a picture could be made; leave --attention out.")


def _figure_across(model: Model, tokenizer: Tokenizer, prompt: str) -> Figure:
    text = generate(model, tokenizer, prompt, temperature=0.0)[0]
    sources = [*prompt_tokens(tokenizer, prompt)[1:], tokenizer.end]
    tokens = [tokenizer.marks["start"], *sentinels.encode(tokenizer, text)][: model.config.max_length]
    both: Any = (np.array(batch_ways() * [one]) for one in (sources, tokens))
    weights_LBHTS = on_host(_across(*nnx.split(model), Pairs(*both)))
    down, across = ([token_label(tokenizer, token) for token in one] for one in (tokens, sources))
    across[-1], down[0] = "(end)", "(start)"
    return draw(np.asarray(weights_LBHTS[:, 0], np.float32), down, f"{text} < {prompt}", across)


def draw(weights_LHTS: np.ndarray, labels: list[str], title: str, across: list[str] | None = None) -> Figure:
    """The figure of attention weights, (L, H, T, S), with a label for each token: of causal ones, whose later tokens
    are left white, or of all that tokens see `across`.

    Those of a head that are no shares, as a core that computes no softmax may have them, are shown by their size, as a
    part of the largest, which the title says.
    """
    L, H, T, S = weights_LHTS.shape
    unseen_TS = np.triu(np.ones((T, S), bool), 1) if across is None else np.zeros((T, S), bool)
    # Labels need a line each; without them the panels can be small.
    most = max(T, S)
    figure, panels_LH, bar = _layout(L, H, side=max(1.6, 0.13 * most) if most <= LABELLED else 2.2)
    for layer in range(L):
        for head in range(H):
            weights_TS, name = weights_LHTS[layer, head], f"layer {layer}, head {head}"
            largest = np.abs(weights_TS).max()
            if weights_TS.min() < 0 or largest > SHARES:
                weights_TS, name = np.abs(weights_TS) / largest, f"{name}: |w| / {largest:.2g}"
            _panel(panels_LH[layer, head], np.ma.array(weights_TS, mask=unseen_TS), name)
    if most <= LABELLED:
        _label(panels_LH, *([shortened(label, 12) for label in one] for one in (labels, across or labels)))
    figure.suptitle(f"What each token (down) looks at (across): {shortened(title, 60)}", fontsize=9, parse_math=False)
    figure.colorbar(panels_LH[0, 0].images[0], cax=bar, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_ylabel("attention weight", fontsize=8)
    bar.tick_params(labelsize=7)
    return figure


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token with its blanks made visible; bytes that are no character as hexadecimal digits."""
    if token == tokenizer.end:
        return "(start)"
    data = sentinels.shown(tokenizer, token)
    try:
        return visible(data.decode())
    except UnicodeDecodeError:
        return data.hex(" ")


def visible(text: str) -> str:
    """The text on one line, with marks for blanks and the code of each character that the font cannot draw."""
    font = get_font(findfont("DejaVu Sans"))
    drawn = (SHOWN.get(character, character) for character in text)
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else f"<{ord(c):x}>" for c in drawn)


def shortened(text: str, most: int) -> str:
    """The visible text, cut to `most` characters."""
    text = visible(text)
    return text if len(text) <= most else text[: most - 1] + "…"


@jax.jit(static_argnums=0)
def _weights(graphdef: nnx.GraphDef, params: nnx.State, tokens_BT: jax.Array) -> jax.Array:
    return attention_weights(nnx.merge(graphdef, params), tokens_BT=tokens_BT)["stack.attention"]


@jax.jit(static_argnums=0)
def _across(graphdef: nnx.GraphDef, params: nnx.State, pairs: Pairs) -> jax.Array:
    return attention_weights(nnx.merge(graphdef, params), pairs=pairs)["decoder.cross"]


def _layout(rows: int, columns: int, side: float) -> tuple[Figure, np.ndarray, Axes]:
    """A figure of square panels and a colour bar, measured in inches: constrained layout takes seconds."""
    left, right, bottom, top, gap = 0.9, 0.9, 0.8, 0.3, 0.3
    width, height = (left + columns * (side + gap) + right, bottom + rows * (side + gap) + top)
    figure = Figure(figsize=(width, height))
    grid = {"left": left / width, "right": 1 - (right + gap) / width, "bottom": bottom / height}
    grid |= {"top": 1 - (top + gap) / height, "wspace": gap / side, "hspace": gap / side}
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, gridspec_kw=grid)
    bar_height = min(2.5, side) / height
    return figure, panels, figure.add_axes((1 - right / width, grid["top"] - bar_height, 0.15 / width, bar_height))


def _panel(panel: Axes, weights_TS: np.ndarray, title: str) -> None:
    panel.imshow(weights_TS, norm=NORM, cmap=COLORS, interpolation="nearest")
    panel.set_title(title, fontsize=8, pad=3)
    panel.set_facecolor(MASKED)
    panel.tick_params(length=0, labelsize=6)
    panel.spines[:].set_visible(False)


def _label(panels_LH: np.ndarray, down: list[str], across: list[str]) -> None:
    for panel in panels_LH[-1]:
        panel.set_xticks(range(len(across)), across, rotation=90, parse_math=False)
    for panel in panels_LH[:, 0]:
        panel.set_yticks(range(len(down)), down, parse_math=False)
