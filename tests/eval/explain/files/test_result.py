"""Results and their files."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from eval.explain.files.result import Explained, Result, load, parameters_hash, pieces, provenance, save
from model.errors import UserError
from tests.eval.explain.bag import bag
from train.data.tokenizers import ByteTokenizer

RNG = np.random.default_rng(0)
TARGET = Explained("token", (6,), (3,), ("\x00 é",), 0.1 + 0.2, 1 / 3, (5,), ("</script>",))
ONE = Result(
    "integrated_gradients",
    True,
    {"decoder.embedding": RNG.standard_normal(2).astype(np.float32), "encoder.embedding": RNG.standard_normal(3)},
    {"decoder.embedding": ("(start)", "‮a"), "encoder.embedding": ("<e2 80>", "\n", "🙂")},
    TARGET,
    "mean",
    1e-3 / 3,
    37,
    0.7,
    {"step": 600, "dtype": "float32", "commit": None},
)
OTHER = Result("gradient", False, {"embedding": np.array([1e-30, 0.1])}, {"embedding": ("a", "b")}, TARGET)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_what_is_saved_is_loaded(tmp_path: Path, ending: str) -> None:
    save([ONE, OTHER], tmp_path / f"some.{ending}")
    found = load(tmp_path / f"some.{ending}")
    for one, want in zip(found, (ONE, OTHER), strict=True):
        for field in dataclasses.fields(Result):
            if field.name != "values":
                assert getattr(one, field.name) == getattr(want, field.name), field.name
        for site, x in want.values.items():
            assert one.values[site].dtype == x.dtype
            np.testing.assert_array_equal(one.values[site], x)
    assert [file.name for file in tmp_path.iterdir()] == [f"some.{ending}"]


def test_other_arrays_stand_beside_results(tmp_path: Path) -> None:
    weights = RNG.random((2, 3, 5)).swapaxes(0, 1)
    save([ONE], tmp_path / "all.safetensors", [("weights.0.stack.attention", weights)])
    np.testing.assert_array_equal(load_file(tmp_path / "all.safetensors")["weights.0.stack.attention"], weights)
    assert len(load(tmp_path / "all.safetensors")) == 1


def test_many_arrays_are_several_files_with_an_index(tmp_path: Path) -> None:
    """As other tools read them: which file has which. Of a later, smaller one no index is left."""
    arrays = {f"0.stack.{layer}.residual": RNG.random((3, layer + 2)) for layer in range(5)}
    file, most = tmp_path / "all.safetensors", 8 * 3 * 6
    save([ONE, OTHER], file, iter(arrays.items()), most=most)
    index = json.loads((tmp_path / "all.safetensors.index.json").read_text())
    names = {name: load_file(tmp_path / name) for name in {*index["weight_map"].values()}}
    assert {*names} == {one.name for one in tmp_path.glob("*.safetensors")}
    assert len(names) > 2
    for name, shard in names.items():
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= most, name
    for name, x in arrays.items():
        np.testing.assert_array_equal(names[index["weight_map"][name]][name], x)
    assert index["metadata"]["total_size"] == sum(x.nbytes for shard in names.values() for x in shard.values())
    assert [one.method for one in load(file)] == [ONE.method, OTHER.method]
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]
    (tmp_path / "all-own.safetensors").touch()
    save([ONE], file)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["all-own.safetensors", "all.safetensors"]


def test_of_arrays_that_stop_coming_nothing_is_left(tmp_path: Path) -> None:
    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        yield from [(name, np.zeros(5)) for name in "ab"]
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        save([ONE], tmp_path / "all.safetensors", arrays(), most=8)
    assert not list(tmp_path.iterdir())


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    for name, write in {
        "missing.json": lambda file: None,
        "missing.safetensors": lambda file: None,
        "list.json": lambda file: file.write_text("[1]"),
        "cut.json": lambda file: file.write_text('{"kind": '),
        "other.json": lambda file: file.write_text(json.dumps({"kind": "page", "version": 1})),
        "text.safetensors": lambda file: file.write_text("hello"),
        "plain.safetensors": lambda file: save_file({"x": np.zeros(2)}, file),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match="cannot be read as heed explanations"):
            load(tmp_path / name)
    for name in ("results.txt", "no/results.json"):
        with pytest.raises(UserError, match="in a folder that exists"):
            save([ONE], tmp_path / name)
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(OTHER, values={"embedding": np.array([np.nan, 0])})
    with pytest.raises(ValueError, match="other sites or sizes"):
        dataclasses.replace(OTHER, values={"embedding": np.zeros(3)})
    for wrong in (np.zeros((2, 2)), np.zeros((2, 1)), np.zeros(2, np.complex64)):
        with pytest.raises(ValueError, match="no number for each token"):
            dataclasses.replace(OTHER, values={"embedding": wrong})


def test_pieces_are_texts_codes_and_names() -> None:
    tokenizer = ByteTokenizer(("mask", "extra_id_0"))
    tokens = [*b"a", 0xC3, 0, tokenizer.end, tokenizer.marks["mask"], tokenizer.marks["extra_id_0"]]
    assert pieces(tokenizer, tokens) == ("a", "<c3>", "\x00", "(end)", "(mask)", "<extra_id_0>")


@pytest.mark.parametrize("place", [(0, 0), (11, 7), (40, 52)])
def test_another_bit_is_another_hash(place: tuple[int, int]) -> None:
    """Wherever it is, be it the last of an array of thousands."""
    model, same = bag()[0], bag()[0]
    for one in (model, same):
        one.table = nnx.Param(jax.random.normal(jax.random.key(0), (41, 53)))
    assert parameters_hash(model) == parameters_hash(same)
    same.table[...] = same.table[...].at[place].multiply(1 + 1e-6)
    assert parameters_hash(model) != parameters_hash(same)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_result_is_of_is_told(tmp_path: Path, dtype: str) -> None:
    """As the passport has it, and the model's own dtype; neither who ran it nor where."""
    passport = {"data": {"fingerprint": "f"}, "git": {"commit": "c", "user": "u"}, "packages": {"heed": "1.2"}}
    (tmp_path / "passport.json").write_text(json.dumps(passport | {"host": "h"}))
    model = bag()[0]
    model.config = SimpleNamespace(dtype=dtype)
    run: Any = SimpleNamespace(folder=tmp_path, model=model, step=600)
    want = {"step": 600, "parameters": parameters_hash(model), "heed": "1.2", "commit": "c", "dtype": dtype}
    assert provenance(run) == want
