"""Device mesh, logical-axis rules, and shardings of parameters, train states and batches.

Modules name the axes of their parameters ("embed", "heads", ...); `LOGICAL_RULES` maps each name to
a mesh axis. The same code runs on every platform: one CPU device is the mesh 1x1x1.

    mesh = create_mesh(fsdp=-1)
    with mesh_context(mesh):
        abstract = jax.eval_shape(init, key)
        state = jax.jit(init, out_shardings=shardings(abstract, mesh))(key)
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfpo_jax.types import Array, ArrayTree

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules = Mapping[str, str | tuple[str, ...] | None]

# Order is priority: if two names of one array map to the same mesh axis, the first rule gets it.
LOGICAL_RULES: Rules = {
    "batch": BATCH_AXES,
    "row": MESH_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "layers": None,
    "head_dim": None,
    "rank": None,
    "length": None,
}


def create_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") over the first `data * fsdp * tensor` devices.

    Args:
      data: replicas that split the batch only.
      fsdp: devices that split the batch and the "embed" axis of parameters.
      tensor: devices that split heads, MLP width and vocabulary. One of the three sizes may be -1,
        which takes all remaining devices.
      devices: devices to use; all of `jax.devices()` by default.

    Raises:
      ValueError: a size is neither positive nor -1, more than one is -1, one is -1 and the others
        do not divide the device count, or the product exceeds it.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh sizes are {shown}; each must be at least 1, and at most one -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if len(devices) % known:
            raise ValueError(
                f"mesh sizes are {shown}; their product without -1, {known}, must divide the "
                f"device count, {len(devices)}"
            )
        sizes[free[0]] = len(devices) // known
    used = math.prod(sizes.values())
    if used > len(devices):
        raise ValueError(
            f"mesh sizes are {shown}; their product, {used}, exceeds the device count, "
            f"{len(devices)}"
        )
    shape = tuple(sizes.values())
    if used == len(jax.devices()) == len(devices):  # JAX chooses the order that suits the topology
        return jax.make_mesh(
            shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
        )
    grid = np.asarray(devices[:used]).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def create_meshes(data: int, fsdp: int, tensor: int, rollout: int) -> tuple[Mesh, Mesh]:
    """The mesh that trains and the one that samples, which is the same where `rollout` is 0.

    Args:
      data, fsdp, tensor: as in `create_mesh`, of all devices but the last `rollout`.
      rollout: number of devices that only sample. `tensor` splits heads among them too, and their
        "fsdp" axis is what is left.

    Raises:
      ValueError: as `create_mesh`; or devices shall only sample, and there are too few of them, or
        several processes, or `tensor` does not divide their number.
    """
    devices, sizes = jax.devices(), (data, fsdp, tensor)
    if rollout == 0:
        mesh = create_mesh(*sizes)
        return mesh, mesh
    if jax.process_count() > 1:
        raise ValueError(
            f"mesh.rollout is {rollout} and there are {jax.process_count()} processes; with more "
            "than one it must be 0"
        )
    parts = max(tensor, 1)
    if rollout >= len(devices) or rollout % parts:
        raise ValueError(
            f"mesh.rollout is {rollout}; it must be less than the device count, {len(devices)}, "
            f"and a multiple of mesh.tensor, {parts}"
        )
    return (
        create_mesh(*sizes, devices=devices[:-rollout]),
        create_mesh(1, rollout // parts, parts, devices=devices[-rollout:]),
    )


@contextlib.contextmanager
def mesh_context(mesh: Mesh, rules: Rules = LOGICAL_RULES) -> Iterator[Mesh]:
    """Sets the mesh (`jax.set_mesh`) and the rules that lay out the activations of models.

    With only `jax.set_mesh(mesh)` the results are the same, but the compiler chooses the layout of
    activations.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(rules.items())):
        yield mesh


def shardings(tree: ArrayTree, mesh: Mesh, rules: Rules = LOGICAL_RULES) -> ArrayTree:
    """`NamedSharding` of every array in a tree of (abstract) arrays, boxed or not.

    The rules lay out leaves in an `nn.LogicallyPartitioned` box; other leaves are replicated. So is
    an axis whose size its mesh axes do not divide. The result keeps the boxes around the shardings,
    so it has the structure of `tree` and fits `out_shardings`. Optimizer states made from boxed
    parameters are boxed, so one call covers a whole train state.

    Args:
      tree: e.g. `jax.eval_shape(init, key)`.
      mesh: from `create_mesh`.
      rules: logical name -> mesh axis, mesh axes, or None.

    Raises:
      ValueError: a logical name has no rule; the message names it and those with a rule.
    """

    def one(leaf):
        if not _is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        return leaf.replace_boxed(NamedSharding(mesh, _spec(leaf, mesh, rules)))

    return jax.tree.map(one, tree, is_leaf=_is_box)


def mesh_size(*axes: str) -> int:
    """Number of devices along axes of the current mesh; 1 without a mesh."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(shape.get(axis, 1) for axis in axes)


def batch_devices() -> int:
    """Number of devices over which the mesh and the rules in force split the batch."""
    return mesh_size(*_names(dict(nn.get_logical_axis_rules()).get("batch", BATCH_AXES)))


def split_rows(x: Array) -> Array:
    """Asks the compiler to split rows over all devices, if they divide them, else over the batch's.

    For what needs a whole row of logits: devices of a tensor axis then exchange rows for parts of
    the vocabulary, instead of gathering all rows each.
    """
    axis = "row" if len(x) % mesh_size(*MESH_AXES) == 0 else "batch"
    return nn.with_logical_constraint(x, (axis, *(None,) * (x.ndim - 1)))


@contextlib.contextmanager
def single_row_rules() -> Iterator[None]:
    """The rules in force, but no activation is split over the data axes.

    For models under `jax.vmap(spmd_axis_name=BATCH_AXES)`, which splits the mapped axis over them.
    """
    rules = nn.get_logical_axis_rules()
    split = {name for name, axes in rules if set(_names(axes)) & set(BATCH_AXES)}
    with nn.logical_axis_rules([(name, None if name in split else axes) for name, axes in rules]):
        yield


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a rule."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(tree: ArrayTree, mesh: Mesh) -> ArrayTree:
    """Places host arrays [B, ...] on the mesh, split along B; scalars are replicated.

    Each of several processes must pass the whole array; only its own rows are read.

    Raises:
      ValueError: B of an array is not a multiple of data * fsdp; names the array and both numbers.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def one(path, leaf):
        leaf = np.asarray(leaf)
        if leaf.ndim == 0:
            return put_replicated(leaf, mesh)
        if leaf.shape[0] % parts:
            raise ValueError(
                f"batch array {jax.tree_util.keystr(path) or '(root)'} has {leaf.shape[0]} rows; "
                f"data * fsdp, {parts}, must divide that"
            )
        return jax.make_array_from_callback(leaf.shape, batch_sharding(mesh), lambda i: leaf[i])

    return jax.tree_util.tree_map_with_path(one, tree)


def put_replicated(value: Array | float, mesh: Mesh) -> Array:
    """A copy of a host value on every device of the mesh."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, replicated(mesh), lambda i: value[i])


def lies_elsewhere(tree: ArrayTree, mesh: Mesh) -> bool:
    """Whether the arrays of a tree are sharded over another mesh than this one."""
    found = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return isinstance(found, NamedSharding) and found.mesh != mesh


def copied_to(tree: ArrayTree, mesh: Mesh) -> ArrayTree:
    """Copies of sharded arrays on a mesh, which outlive a donation of the arrays.

    They are split along the same mesh axes; an axis that the mesh's size does not divide stays
    whole. Devices send to devices. Of abstract arrays abstract ones.
    """

    def one(x):
        names = [_names(axes) for axes in x.sharding.spec]
        sizes = [math.prod(mesh.shape[axis] for axis in axes) for axes in names]
        spec = [
            axes if length % size == 0 else None
            for axes, size, length in zip(x.sharding.spec, sizes, x.shape, strict=False)
        ]
        place = NamedSharding(mesh, PartitionSpec(*spec))
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        return jnp.copy(x) if x.sharding.mesh == mesh else jax.device_put(x, place)

    return jax.tree.map(one, tree)


def to_host(tree: ArrayTree) -> ArrayTree:
    """Whole NumPy arrays of device arrays, in every process."""

    def one(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def own_rows(count: int) -> slice:
    """This process's share of `count` rows of work on the host, such as verifying."""
    edges = [round(count * i / jax.process_count()) for i in range(jax.process_count() + 1)]
    return slice(edges[jax.process_index()], edges[jax.process_index() + 1])


def gather_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Gathers the `own_rows` that each process computed to [count, ...]; a collective."""
    if jax.process_count() == 1:
        return rows
    whole = np.zeros((count, *rows.shape[1:]), rows.dtype)
    whole[own_rows(count)] = rows
    return multihost_utils.process_allgather(whole).sum(axis=0).astype(rows.dtype)


def _is_box(leaf) -> bool:
    """Whether a node of a tree is a box with logical axis names."""
    return isinstance(leaf, nn.LogicallyPartitioned)


def _spec(box, mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The partition of one boxed array; an axis that does not divide is replicated."""
    names, shape = box.names, box.value.shape
    if len(names) != len(shape):
        raise ValueError(f"an array of shape {shape} has the logical axes {names}")
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(f"logical axis {name!r} has no rule; there are {', '.join(rules)}")
    priority = list(rules)
    spec: list[str | tuple[str, ...] | None] = [None] * len(names)
    taken: set[str] = set()
    named = [i for i, name in enumerate(names) if name is not None]
    for i in sorted(named, key=lambda i: priority.index(names[i])):
        target = rules[names[i]]
        axes = _names(target)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if not axes or taken & set(axes) or shape[i] % parts:
            continue
        spec[i] = target
        taken |= set(axes)
    return PartitionSpec(*spec)
