"""Checkpoints: bit-equal round trips, which steps are kept, and what happens to broken or foreign ones."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from model.errors import UserError
from train.run.checkpoints import Checkpoints
from train.run.files.step_files import check_sizes


@struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def make_state(seed: int, shape: tuple[int, int] = (12, 22)) -> State:
    def place(x: Any, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh(), PartitionSpec(*spec)))

    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return State(
        step=place(np.int32(seed)),
        params={"head": {"kernel": place(kernel, "fsdp", "tensor")}, "norm": {"scale": place(kernel[0], None)}},
        opt_state=({"mu": place(kernel.astype(jnp.bfloat16), "tensor", None)}, (), place(np.int32([seed, 7]))),
        rng=place(jax.random.split(jax.random.key(seed), 2)),
    )


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_all(folder: Path, steps: list[int], keep_last: int = 5) -> None:
    with Checkpoints(folder, keep_last) as written:
        for step in steps:
            written.save(step, make_state(step), {"batches": step})


def cut(folder: Path, step: int) -> None:
    """Takes half of the bytes of the step's largest file."""
    largest = max((path for path in (folder / str(step)).rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize("inside", [False, True])
def test_a_sharded_state_comes_back_bit_for_bit(tmp_path: Path, inside: bool) -> None:
    state = make_state(3)
    with jax.set_mesh(mesh() if inside else jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])):
        with Checkpoints(tmp_path, 2) as written:
            assert written.restore(abstract(state)) is None
            written.save(3, state, {"batches": 3, "seeds": [0, 1]}, 0.5)
        with Checkpoints(tmp_path) as read:
            found, extra, step = read.restore(abstract(state))
            params, _, _ = read.restore({"params": abstract(state.params)})
    assert (extra, step) == ({"batches": 3, "seeds": [0, 1]}, 3)
    assert_same_bits(found, state)
    assert_same_bits(params["params"], state.params)


def test_a_donated_state_is_saved_as_it_was(tmp_path: Path) -> None:
    advance = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    x = advance(jnp.ones((1009, 1013)))
    wanted = np.array(x, copy=True)
    with Checkpoints(tmp_path, 1) as written:
        written.save(1, {"x": x}, {})
        for _ in range(5):
            x = advance(x)
        written.wait()
        found, _, _ = written.restore({"x": jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=x.sharding)})
    np.testing.assert_array_equal(found["x"], wanted)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    metrics = {10: 5.0, 20: 1.0, 30: 3.0, 40: None, 50: 2.0, 60: None}
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as written:
        for step, metric in metrics.items():
            written.save(step, {"x": jnp.arange(3)}, {}, metric)
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as again:
        assert again.steps() == [20, 50, 60]
        again.save(70, {"x": jnp.arange(3)}, {}, 1.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "60", "70"]


def test_the_best_is_looked_for_among_scores_of_one_name(tmp_path: Path) -> None:
    """What has no score, or one of other windows, is the worst; every file is JSON that any reader reads."""
    for name, steps in (("few", {10: 0.5, 20: None}), ("all", {30: 3.0, 40: 4.0, 50: None})):
        with Checkpoints(tmp_path, keep_last=1, keep_best=1, metric=name) as written:
            for step, metric in steps.items():
                written.save(step, {"x": jnp.arange(3)}, {}, metric)
        assert written.steps() == ([10, 20] if name == "few" else [30, 50])
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert b"Infinity" not in file.read_bytes(), file


def test_a_saved_step_is_not_written_again(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, 2) as written:
        written.save(1, {"x": jnp.arange(3)}, {"n": 1})
        written.save(1, {"x": jnp.arange(3)}, {"n": 2})
        like = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=jnp.arange(3).sharding)}
        written.wait()
        assert written.restore(like)[1] == {"n": 1}


@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_cut_step_gives_way_to_the_one_before(tmp_path: Path, opened: str, caplog: pytest.LogCaptureFixture) -> None:
    save_all(tmp_path, [10, 20])
    if opened == "after":
        cut(tmp_path, 20)
    with Checkpoints(tmp_path, 5) as run, caplog.at_level(logging.WARNING, "heed"):
        if opened == "before":
            cut(tmp_path, 20)
        found, extra, step = run.restore(abstract(make_state(0)))
        assert (extra, step, run.steps()) == ({"batches": 10}, 10, [10])
        assert_same_bits(found, make_state(10))
        # The number of the broken step can be saved again, and is then the newest.
        run.save(20, make_state(21), {"batches": 21})
        run.wait()
        assert run.restore(abstract(make_state(0)))[1:] == ({"batches": 21}, 20)
    if opened == "before":
        assert caplog.text.count("checkpoint 20 of") == 1
        assert "the one before is taken" in caplog.text
    assert (tmp_path / "broken-20").is_dir()


def test_a_lost_file_is_noticed_whatever_it_held(tmp_path: Path) -> None:
    save_all(tmp_path / "good", [10, 20])
    paths = [path for item in ("state", "extra") for path in (tmp_path / "good/20" / item).rglob("*")]
    names = [path.relative_to(tmp_path / "good/20") for path in paths if path.is_file()]
    for name in names:
        if name.name == "commit_success.txt":
            continue
        (tmp_path / "good/20" / name).rename(tmp_path / "taken")
        with pytest.raises(ValueError, match="0 of"):
            check_sizes(tmp_path / "good/20")
        (tmp_path / "taken").rename(tmp_path / "good/20" / name)
    assert len(names) > 5


def test_an_altered_byte_is_noticed(tmp_path: Path) -> None:
    """In every file that Orbax reads as a whole, some of which would end it with errors of any kind."""
    save_all(tmp_path, [10, 20])
    files = [path for item in ("state", "extra") for path in (tmp_path / "20" / item).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "commit_success.txt"]
    for file in files:
        whole = file.read_bytes()
        at = len(whole) // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="is altered"):
            check_sizes(tmp_path / "20")
        file.write_bytes(whole)
    assert {"metadata", "_METADATA", "_sharding"} <= {path.name for path in files}


def test_an_extra_that_lacks_something_gives_way_too(tmp_path: Path) -> None:
    def check(extra: dict[str, Any]) -> None:
        assert type(extra["batches"]) is int

    save_all(tmp_path, [10, 20])
    (tmp_path / "20/files.json").unlink()
    (tmp_path / "20/extra/metadata").write_text('{"betches": 20}')
    with Checkpoints(tmp_path) as read:
        assert read.restore(abstract(make_state(0)), check=check)[2] == 10


def test_a_garbled_step_without_sizes_gives_way_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_all(tmp_path, [10, 20])
    (tmp_path / "20/files.json").unlink()
    (tmp_path / "20/state/_METADATA").write_text("{")
    with Checkpoints(tmp_path) as read, caplog.at_level(logging.WARNING, "heed"):
        assert read.restore(abstract(make_state(0)))[2] == 10
    assert "checkpoint 20 of" in caplog.text
    assert (tmp_path / "20").is_dir()


def test_nothing_but_broken_steps_is_refused_and_kept(tmp_path: Path) -> None:
    save_all(tmp_path, [10, 20])
    cut(tmp_path, 10)
    cut(tmp_path, 20)
    with pytest.raises(UserError, match="no checkpoint that can be read"):
        Checkpoints(tmp_path, 5)
    with Checkpoints(tmp_path) as read, pytest.raises(UserError, match="no checkpoint that can be read"):
        read.restore(abstract(make_state(0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_another_model_is_refused_by_its_first_leaf(tmp_path: Path) -> None:
    save_all(tmp_path, [10])
    with Checkpoints(tmp_path, 5) as run:
        with pytest.raises(
            UserError, match=r"params.head.kernel is float32\[12, 22\] there and float32\[12, 26\] here"
        ):
            run.restore(abstract(make_state(0, (12, 26))))
        with pytest.raises(UserError, match=r"params.norm.scale is float32\[22\] there and absent here"):
            run.restore({"params": {"head": abstract(make_state(0)).params["head"]}})
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_what_an_interrupted_save_left_is_deleted_by_the_next_writer_only(tmp_path: Path) -> None:
    save_all(tmp_path, [10])
    left = tmp_path / "20.orbax-checkpoint-tmp"
    left.mkdir()
    with Checkpoints(tmp_path) as read:
        assert read.restore(abstract(make_state(0)))[2] == 10
    assert left.is_dir()
    with Checkpoints(tmp_path, 1) as run:
        run.save(20, make_state(20), {})
    assert [path.name for path in tmp_path.iterdir()] == ["20"]


@pytest.mark.parametrize(("keep_last", "keep_best", "flag"), [(0, 1, "keep_last=0"), (1, -1, "keep_best=-1")])
def test_keeping_nothing_is_refused(tmp_path: Path, keep_last: int, keep_best: int, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        Checkpoints(tmp_path, keep_last, keep_best)
