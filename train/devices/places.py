"""Where each parameter lies on the mesh: as the rules say, or as a table says of the leaves whose names match."""

import difflib
import fnmatch
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from model.axes import partition_spec
from model.errors import UserError
from train.devices.mesh import AXES

WHOLE = "whole"
_OF_MOMENTS = {"embed": "moments"}
_PART = re.compile(r"(\w+):(\w+(?:\+\w+)*)")


class Place(NamedTuple):
    """A parameter's shape, the logical names of its axes, and the mesh axes over which each of them is split, in itself
    and in its moments.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    spec: PartitionSpec
    moments: PartitionSpec


Places = Mapping[tuple[Any, ...], Place]


def spec_at(places: Places, path: tuple[Any, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """That of a leaf of a state: moments of an optimizer, whose paths end in their parameter's, lie as its place says,
    and whatever has another shape (counts, factored moments) is not split.
    """
    place = next((places[path[i:]] for i in range(len(path)) if path[i:] in places), None)
    if place is None or place.shape != shape:
        return PartitionSpec()
    return place.spec if path[0] == "params" else place.moments


def leaf_places(model: nnx.Module, mesh: Mesh, table: str = "", seeds: int = 1) -> Places:
    """The place of each parameter of an abstract model by its path, by the ambient rules and `config.mesh.place`.

    The table is a list of entries, 'head.kernel=vocab:fsdp+tensor & embed:context, norm.*=whole', of which the last
    that matches a leaf's name says all of its place: an axis that it does not name is not split.

    Raises:
        UserError: an entry that cannot be read, matches nothing or splits what it cannot; names it.
    """
    leaves = {path: (leaf.shape, leaf.axes) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    places = {
        path: Place(
            shape, axes, partition_spec(axes), partition_spec(tuple(_OF_MOMENTS.get(axis, axis) for axis in axes))
        )
        for path, (shape, axes) in leaves.items()
    }
    names = {".".join(map(str, path)): path for path in places}
    for entry, pattern, ways in _entries(table):
        begin, matching = f"--config.mesh.place: {entry!r}", fnmatch.filter(names, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0)
            raise UserError(f"{begin} matches no parameter; the nearest is {near[0]!r}.")
        _check_axes(begin, ways, [places[names[name]] for name in matching], seeds)
        for name in matching:
            shape, axes, *_ = places[names[name]]
            _check_sizes(begin, ways, name, dict(zip(axes, shape, strict=True)), mesh)
            spec = PartitionSpec(*(ways.get(axis) for axis in axes))
            places[names[name]] = Place(shape, axes, spec, spec)
    return places


def _entries(table: str) -> Iterator[tuple[str, str, dict[str, tuple[str, ...]]]]:
    """(the entry as it is written, its pattern, the mesh axes of each logical axis) of each entry."""
    for entry in filter(None, map(str.strip, table.split(","))):
        pattern, _, where = map(str.strip, entry.partition("="))
        parts = [] if where == WHOLE else [_PART.fullmatch(part.strip()) for part in where.split("&")]
        if not all(parts) or len({part[1] for part in parts if part}) < len(parts):
            raise UserError(
                f"--config.mesh.place: {entry!r} cannot be read; write pattern=axis:{AXES[1]}, more axes with '&' and "
                f"'+', or pattern={WHOLE}, and commas between them."
            )
        yield entry, pattern, {part[1]: tuple(part[2].split("+")) for part in parts if part}


def _check_axes(begin: str, ways: dict[str, tuple[str, ...]], places: list[Place], seeds: int) -> None:
    known = dict.fromkeys(axis for place in places for axis in place.axes)
    if unknown := [axis for axis in ways if axis not in known]:
        raise UserError(f"{begin}: no such parameter has an axis {unknown[0]!r}; there are: {', '.join(known)}.")
    used, there = [axis for axes in ways.values() for axis in axes], AXES[1:] if seeds > 1 else AXES
    if unknown := [axis for axis in used if axis not in there]:
        carries = (
            " carries the seeds; of the mesh are left" if unknown[0] in AXES else " is no axis of the mesh, which has"
        )
        raise UserError(f"{begin}: {unknown[0]!r}{carries}: {', '.join(there)}.")
    if len(used) > len({*used}):
        raise UserError(f"{begin} gives an axis of the mesh twice; give each once.")


def _check_sizes(begin: str, ways: dict[str, tuple[str, ...]], name: str, sizes: dict[str, int], mesh: Mesh) -> None:
    for axis, over in ways.items():
        grid = " x ".join(f"{one}={mesh.shape[one]}" for one in over)
        if axis in sizes and sizes[axis] % math.prod(mesh.shape[one] for one in over):
            raise UserError(
                f"{begin}: {axis}={sizes[axis]} of {name} does not divide evenly over the mesh's {grid}; change the "
                "entry or --config.mesh.*."
            )
