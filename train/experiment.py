"""From a config to the things that training needs, all built before anything runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from model.families.family import Family
from model.families.table import FAMILIES
from model.layers import choose
from train.attention import Attention, choose_attention, with_cores
from train.data import Rows, batches
from train.data.order import ORDERS
from train.devices.mesh import Rules, check_fit, make_mesh, make_rules, sizes
from train.devices.places import leaf_places
from train.devices.placing import batch_sharding, local_numbers, place_batch
from train.limits import check_config
from train.optimizers import make_optimizer
from train.schedules import make_schedule
from train.sharding import born_sharded, make_init, placed
from train.state import Params, State, seed_pairs
from train.step import Metrics, population
from train.steps import choose_step
from train.tasks.base import Batch, Task
from train.tasks.table import make_task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config stands for. `step` and `sums` are jitted and must run inside of `placed(mesh, rules)`.

    step(state, batch) -> (state, metrics); sums(params, batch): what an evaluation of its task adds up; make_state() ->
    the state before update 1. `abstract` is the state's shapes and shardings, `shape` and `sharding` are those of the
    tokens of a training batch, and `local` the numbers, along each of its leading axes, that this process loads.
    `attention` is, for each site of the model and each layer of its unit, what training asks of it, and the core that
    computes it, here and in `step` and `sums`.
    """

    config: ConfigDict
    task: Task
    model_config: Family
    attention: Attention
    mesh: Mesh
    rules: Rules
    abstract: State
    make_state: functools.partial[State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    sums: Callable[[Params, Batch], tuple[jax.Array, jax.Array]]
    schedule: optax.Schedule
    sharding: NamedSharding
    shape: tuple[int, ...]
    local: tuple[np.ndarray, ...]

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the rows of a batch that this process loads."""
        return self.local[-1]

    def with_data(self, data: Any) -> "Experiment":
        """The same for as many tokens and labels as there really are: a short text makes fewer than asked for."""
        given = {"vocab_size": data.tokenizer.vocab_size, "labels": len(data.names)}
        same = all(getattr(self.model_config, name, size) == size for name, size in given.items())
        return self if same else make_experiment(self.config, devices=self.mesh.devices.ravel().tolist(), **given)

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """This process's part of a global batch, put on the mesh; all seeds share one that has no axis of seeds.

        Raises:
            UserError: its task refuses it.
        """
        self.task.check(batch, self.model_config)
        return place_batch(batch, self.sharding, self.shape, self.local)

    def batches(self, windows: Rows, start: int) -> Iterator[Batch]:
        """Global batches on the mesh, from number `start` on."""
        data, own = self.config.data, len(self.shape) > 2
        seed = [data.seed + int(number) for number in self.local[0]] if own else data.seed
        read = batches(windows, data.batch_size, seed, start=start, prefetch=data.prefetch, rows=self.rows)
        return map(self.place, read)


def make_experiment(
    config: ConfigDict, vocab_size: int = 0, devices: Sequence[jax.Device] | None = None, labels: int = 0
) -> Experiment:
    """Builds model, optimizer, mesh and step; no array is made yet.

    Without `vocab_size` it has as many tokens as the config asks for. `devices` are all that this program sees, or
    those of a machine that is only planned for.

    Raises:
        UserError: sizes that do not fit each other or the devices, or a choice that does not exist.
    """
    check_config(config)
    seeds, train, task = config.train.seeds, config.train, make_task(config)
    model_config = make_model_config(config, vocab_size or task.vocab_size(config), labels)
    schedule = make_schedule(config.optimizer, train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    mesh, rules = make_mesh(dict(config.mesh), devices), make_rules(seeds, config.mesh.rules)
    check_fit(mesh, rules, sizes(config, model_config, mesh), seeds)
    model = nnx.eval_shape(lambda: model_config.build(nnx.Rngs(0)))
    with placed(mesh, rules):
        attention = choose_attention(model, model_config, config.data.batch_size // train.accumulate)
    model_config = with_cores(model_config, attention)
    model = nnx.eval_shape(lambda: model_config.build(nnx.Rngs(0)))
    graphdef = nnx.graphdef(model)
    batch_axis, rows = ORDERS[config.data.order], (config.data.batch_size, config.data.length)
    shape = (seeds, *rows) if seeds > 1 and batch_axis is not None else rows
    with placed(mesh, rules):
        init = make_init(model_config.build, optimizer.init, lambda model: task.empty_carry(model, rows[0]))
        places = leaf_places(model, mesh, config.mesh.place, seeds)
        make_state, abstract = born_sharded(init, places, seed_pairs(train.seed, seeds, train.dropout_seed), mesh)
        sharding = batch_sharding(mesh, len(shape))
    make_step, sums = choose_step(train.step, mesh, abstract, seeds), task.sums(graphdef)
    step = make_step(task.carried(graphdef, train), optimizer, train.accumulate)
    if seeds > 1:
        step, sums = population(step, batch_axis), jax.vmap(sums, in_axes=(0, None), spmd_axis_name="replica")
    return Experiment(
        config=config,
        task=task,
        model_config=model_config,
        attention=attention,
        mesh=mesh,
        rules=rules,
        abstract=abstract,
        make_state=make_state,
        # The state stays in its place, whatever a core makes of the gradients: else the next step would refuse it.
        step=jax.jit(step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), None)),
        sums=jax.jit(sums),
        schedule=schedule,
        sharding=sharding,
        shape=shape,
        local=local_numbers(sharding, shape),
    )


def make_model_config(config: ConfigDict, vocab_size: int, labels: int = 0) -> Family:
    """The sizes and choices of the family's model: its keys, and what the data say.

    Raises:
        UserError: there is no such family, or its keys do not fit each other.
    """
    family, task = choose(FAMILIES, config.family, "family"), make_task(config)
    given = {"vocab_size": vocab_size, "max_length": config.data.length, "labels": labels}
    given |= {"head": task.HEAD, "target_length": task.target_length(config.data.length)}
    return family(
        **config.model, **{one.name: given[one.name] for one in dataclasses.fields(family) if one.name in given}
    )


def bind(config: ConfigDict, params: Params, seed: int = 0) -> Any:
    """A model to call, with the parameters of a state; of a population, those of seed number `seed`."""
    if config.train.seeds > 1:
        params = jax.jit(lambda tree: jax.tree.map(lambda x: x[seed], tree))(params)  # also across processes
    labels = len(params["answer"]["kernel"].T) if "answer" in params else 0
    model_config = make_model_config(config, len(params["embed"]["embedding"]), labels)
    abstract = nnx.eval_shape(lambda: model_config.build(nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(abstract), params)
