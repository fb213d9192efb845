"""Values that travel through jit, vmap and shard_map: dataclasses whose fields are static or arrays with named axes."""

import dataclasses
from typing import Any, TypeVar, cast, dataclass_transform

import jax
from jax.sharding import PartitionSpec

from model.axes import partition_spec

Kind = TypeVar("Kind", bound=type[Any])


def static(**options: Any) -> Any:
    """A field that is part of a program: programs of different values are compiled apart."""
    return dataclasses.field(metadata={"static": True}, **options)


def array(*axes: str | None, **options: Any) -> Any:
    """A field that holds an array, with the logical name of each axis ('batch', 'heads', or None: not split)."""
    return dataclasses.field(metadata={"axes": axes}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, array))
def value(kind: Kind) -> Kind:
    """Makes a class a frozen dataclass and a pytree: its fields are children, those marked static are not.

    Not by `jax.tree_util.register_dataclass`: in jax 0.10 and 0.12 the structures of two such classes are equal when
    their fields agree, so that jit, where hashes collide, runs what it compiled for `a | b` on `a & b`.
    """
    kind = cast(Kind, dataclasses.dataclass(frozen=True)(kind))
    fields = dataclasses.fields(cast(Any, kind))
    fixed = [field.name for field in fields if field.metadata.get("static")]
    children = [field.name for field in fields if field.name not in fixed]

    def flatten(one: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(one, name) for name in children), tuple(getattr(one, name) for name in fixed)

    def unflatten(values: tuple[Any, ...], leaves: tuple[Any, ...]) -> Any:
        one = object.__new__(kind)  # not through __init__: jax puts other things than arrays into trees
        for name, content in zip([*children, *fixed], [*leaves, *values], strict=True):
            object.__setattr__(one, name, content)
        return one

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
    return kind


def leaf_axes(one: Any) -> list[tuple[str | None, ...]]:
    """The logical names of the axes of each array in a value, in the order of its leaves."""
    found: list[tuple[str | None, ...]] = []
    for field in dataclasses.fields(one):
        content = getattr(one, field.name)
        if field.metadata.get("static") or content is None:
            continue
        found += [field.metadata["axes"]] if "axes" in field.metadata else leaf_axes(content)
    return found


def specs(one: Any, **ways: Any) -> Any:
    """The same value with a PartitionSpec for each array, by the ambient rules; an axis of size 1 is not split.

    `ways` replaces the mesh axes of a logical name, such as `heads=('tensor', 'context')`.
    """

    def spec(names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        split = [ways[name] if name in ways else partition_spec((name,))[0] for name in names]
        return PartitionSpec(*(axis if size > 1 else None for axis, size in zip(split, shape, strict=True)))

    leaves, tree = jax.tree.flatten(one)
    return jax.tree.unflatten(tree, [spec(names, x.shape) for names, x in zip(leaf_axes(one), leaves, strict=True)])
