"""One map of one input: what each token counts for an answer, all that it depends on, and its file."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import nnx

from eval.explain.files.shards import SHARD, write_shards
from eval.runs import Run
from model.errors import UserError
from model.families.family import Model
from train.data import Tokenizer, sentinels
from train.devices.placing import on_host
from train.run.files.json_files import dumps, loads, write
from train.run.files.mending import read_kept

KIND, VERSION = "heed explanations", 1


@dataclasses.dataclass(frozen=True)
class Explained:
    """What is explained of an input, as told: `kind` (class, tag, token, span or continuation), the answers at their
    places by number and as text, those that they are compared with, the value (their logits, or for a continuation
    their log-probabilities, summed, less those of the others) and the probability.
    """

    kind: str
    places: tuple[int, ...]
    answers: tuple[int, ...]
    texts: tuple[str, ...]
    value: float
    probability: float
    against: tuple[int, ...] = ()
    against_texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """How much each token counts, (n,) by the site of its vector, with its sign if `signed`; `pieces` are the tokens'
    texts, by the same sites. `baseline` is what they are compared with, '' where that is nothing; `error` that of
    completeness, relative, where the method has one; `passes` of the model and `seconds` are of this input's part of a
    batch.

    Raises:
        ValueError: values that are not finite, or not as many as there are tokens.
    """

    method: str
    signed: bool
    values: dict[str, np.ndarray]
    pieces: dict[str, tuple[str, ...]]
    target: Explained
    baseline: str = ""
    error: float | None = None
    passes: int | None = None
    seconds: float = 0.0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = ({site: len(one) for site, one in some.items()} for some in (self.values, self.pieces))
        if next(sizes) != next(sizes):
            raise ValueError(f"{self.method} has other sites or sizes than the tokens")
        if any(np.ndim(x) != 1 or np.iscomplexobj(x) for x in self.values.values()):
            raise ValueError(f"{self.method} has values that are no number for each token")
        if not all(np.isfinite(x).all() for x in self.values.values()):
            raise ValueError(f"{self.method} has values that are not finite")


def provenance(run: Run) -> dict[str, Any]:
    """What a run's results are of: step, the parameters' hash, the heed that trained them, and the dtype.

    It names neither who ran it nor where.
    """
    passport = read_kept(run.folder, "passport.json")
    git, packages = passport.get("git"), passport.get("packages", {})
    return {
        "step": run.step,
        "parameters": parameters_hash(run.model),
        "heed": packages.get("heed"),
        "commit": git.get("commit") if isinstance(git, dict) else None,
        "dtype": run.model.config.dtype,
    }


def parameters_hash(model: Model) -> str:
    """The same for two models only if their parameters are, by name and bit."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        x = np.ascontiguousarray(on_host(leaf))
        found.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        found.update(x.tobytes())
    return found.hexdigest()


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> tuple[str, ...]:
    """The text of each token: `(end)` and the like of what stands for no text, the codes of bytes that are no character
    by themselves, as `<e2 80>`.
    """
    names = {number: f"({name})" for name, number in ({"end": tokenizer.end} | tokenizer.marks).items()}

    def text(token: int) -> str:
        data = sentinels.shown(tokenizer, token)
        try:
            return data.decode() or names.get(token, "")
        except UnicodeDecodeError:
            return f"<{data.hex(' ')}>"

    return tuple(text(int(token)) for token in tokens)


def save(
    results: Sequence[Result],
    path: str | Path,
    arrays: Iterable[tuple[str, np.ndarray]] = (),
    beside: Mapping[str, Any] | None = None,
    most: int = SHARD,
) -> None:
    """Writes results, whole or not at all: as JSON, or by the name's ending as safetensors, whose metadata hold all but
    the numbers; there with other arrays beside them, by their names, one after the other: as `write_shards`. `beside`
    is what else is told by name, such as `faithfulness`.

    Raises:
        UserError: the name has another ending, or its folder is not there.
        OSError, SafetensorError: it cannot be written.
    """
    file, told = Path(path), [dataclasses.asdict(one) for one in results]
    if file.suffix not in (".json", ".safetensors") or not file.parent.is_dir():
        raise UserError(f"{path} must be a .json or .safetensors file in a folder that exists; give such a name.")
    values, head = [one.pop("values") for one in told], dict(beside or {}) | {"kind": KIND, "version": VERSION}
    if file.suffix == ".json":
        for one, some in zip(told, values, strict=True):
            one["values"] = {site: {"dtype": str(x.dtype), "numbers": x.tolist()} for site, x in some.items()}
        write(file, head | {"results": told})
        return
    for number, (one, some) in enumerate(zip(told, values, strict=True)):
        one["values"] = {site: f"values.{number}.{site}" for site in some}
    named = {f"values.{number}.{site}": x for number, some in enumerate(values) for site, x in some.items()}
    write_shards(file, named, arrays, {"heed": dumps(head | {"results": told})}, most)


def load(path: str | Path) -> list[Result]:
    """What `save` wrote, the same in every bit.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "np") as opened:
                told = loads((opened.metadata() or {})["heed"])
                return _read(told, lambda name: opened.get_tensor(name))
        return _read(loads(file.read_bytes()), lambda x: np.array(x["numbers"], x["dtype"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is none or is damaged"
        raise UserError(f"{path} cannot be read as {KIND} ({reason}); give a file that launch.explain wrote.") from None


def _read(told: Any, values: Any) -> list[Result]:
    if told["kind"] != KIND or told["version"] != VERSION:
        raise ValueError("another kind, or version")
    found = []
    for one in told["results"]:
        target: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in one["target"].items()}
        made = {
            "values": {site: values(x) for site, x in one["values"].items()},
            "pieces": {site: tuple(x) for site, x in one["pieces"].items()},
            "target": Explained(**target),
        }
        found.append(Result(**(one | made)))
    return found
