"""A state as flat, named, plain arrays: what a checkpoint holds, whatever the classes of the tree in memory."""

from collections.abc import Mapping
from typing import Any

import jax


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flat(tree: Any) -> dict[str, Any]:
    """{'params.embed.embedding': leaf}: what is saved depends on names, not on the classes of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def plain(tree: Any) -> dict[str, Any]:
    """The flat tree with typed random keys as the numbers that they hold."""
    return {name: _key_numbers(leaf) if _is_key(leaf) else leaf for name, leaf in _flat(tree).items()}


def _key_numbers(keys: Any) -> Any:
    if isinstance(keys, jax.Array):
        return jax.random.key_data(keys)
    numbers = jax.eval_shape(jax.random.key_data, keys)
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=keys.sharding)


def _key_impl(keys: Any) -> Any:
    """The generator of abstract keys, which jax tells only of real or traced ones."""
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), keys)
    return found[0]


def typed(named: Mapping[str, jax.Array], abstract: Any) -> Any:
    """The tree of `abstract`, filled from the flat one."""

    def leaf(name: str, target: Any) -> jax.Array:
        if not _is_key(target):
            return named[name]
        return jax.random.wrap_key_data(named[name], impl=_key_impl(target))

    leaves = [leaf(name, target) for name, target in _flat(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def difference(saved: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """The first leaf whose shape or dtype is not as wanted, among the fields that are wanted."""
    fields = {name.partition(".")[0] for name in wanted}
    for name in [*wanted, *(name for name in saved if name.partition(".")[0] in fields)]:
        here = f"{wanted[name].dtype}{list(wanted[name].shape)}" if name in wanted else "absent"
        there = f"{saved[name].dtype}{list(saved[name].shape)}" if name in saved else "absent"
        if here != there:
            return f"{name} is {there} there and {here} here"
    return None
