"""One table of the names of published weights and ours, and their placement shard by shard."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import LOGICAL_RULES, Rules, create_mesh, shardings
from dfpo_jax.types import ArrayTree


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters and its tensor in a file.

    Attributes:
      path: its path in our tree, joined by "/". Under "layers/" our parameter stacks all layers
        along its first axis, and the file has one tensor per layer.
      hf: its name in safetensors files, with `{layer}` for the layer.
      gguf: its name in GGUF files.
      inputs: None if both have the same axes. Otherwise the file's tensor is [outputs, inputs] and
        ours [*inputs, *outputs] after the stack; this is the number of our input axes. With 0
        there are only outputs, which the file joins to one axis.
      rotated: whether its outputs are rotated; llama.cpp stores those in another order.
    """

    path: str
    hf: str
    gguf: str
    inputs: int | None = None
    rotated: bool = False


def _layer_row(
    path: str, hf: str, gguf: str, inputs: int | None = None, rotated: bool = False
) -> Row:
    names = f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}"
    return Row(f"layers/{path}", *names, inputs, rotated)


TABLE = (
    Row("embedding", "model.embed_tokens.weight", "token_embd.weight"),
    _layer_row("attention_norm/scale", "input_layernorm.weight", "attn_norm.weight"),
    _layer_row("attention/query/kernel", "self_attn.q_proj.weight", "attn_q.weight", 1, True),
    _layer_row("attention/query/bias", "self_attn.q_proj.bias", "attn_q.bias", 0, True),
    _layer_row("attention/key/kernel", "self_attn.k_proj.weight", "attn_k.weight", 1, True),
    _layer_row("attention/key/bias", "self_attn.k_proj.bias", "attn_k.bias", 0, True),
    _layer_row("attention/value/kernel", "self_attn.v_proj.weight", "attn_v.weight", 1),
    _layer_row("attention/value/bias", "self_attn.v_proj.bias", "attn_v.bias", 0),
    _layer_row("attention/query_norm/scale", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    _layer_row("attention/key_norm/scale", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    _layer_row("attention/output/kernel", "self_attn.o_proj.weight", "attn_output.weight", 2),
    _layer_row("mlp_norm/scale", "post_attention_layernorm.weight", "ffn_norm.weight"),
    _layer_row("mlp/gate/kernel", "mlp.gate_proj.weight", "ffn_gate.weight", 1),
    _layer_row("mlp/up/kernel", "mlp.up_proj.weight", "ffn_up.weight", 1),
    _layer_row("mlp/down/kernel", "mlp.down_proj.weight", "ffn_down.weight", 1),
    Row("final_norm/scale", "model.norm.weight", "output_norm.weight"),
    Row("head", "lm_head.weight", "output.weight", 1),
)


class Source(Protocol):
    """Tensors of a checkpoint, read in parts.

    Attributes:
      naming: the column of `Row` with this format's names.
      interleaved: whether rotated outputs are in llama.cpp's order, with pairs side by side.
    """

    naming: str
    interleaved: bool

    def names(self) -> set[str]:
        """Every tensor in the files."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, as floats; reads only the part of the file that the format requires.

        Raises:
          ValueError: the type of the tensor is not a plain float; names it.
        """


def abstract_params(config: TransformerConfig) -> ArrayTree:
    """Shapes and types of the decoder's parameters without LoRA, boxed with their logical axes."""
    tokens, model = jax.ShapeDtypeStruct((1, 1), jnp.int32), Transformer(config.without_lora())
    return jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]


def flatten(tree: ArrayTree) -> dict[str, jax.ShapeDtypeStruct | jax.Array | NamedSharding]:
    """Leaves by their path joined with "/", boxes removed."""
    return flax.traverse_util.flatten_dict(nn.unbox(tree), sep="/")


def layers_of(row: Row, config: TransformerConfig) -> range:
    """The layers that a row covers; only 0 if it is not stacked."""
    return range(config.num_layers if row.path.startswith("layers/") else 1)


def file_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a tensor that has `shape` in our layout, without the stack."""
    if row.inputs is None:
        return shape
    outputs = math.prod(shape[row.inputs :])
    return (outputs, math.prod(shape[: row.inputs])) if row.inputs else (outputs,)


def load_params(
    source: Source,
    config: TransformerConfig,
    mesh: Mesh | None = None,
    rules: Rules = LOGICAL_RULES,
    ignored: frozenset[str] = frozenset(),
) -> ArrayTree:
    """Reads every parameter from a checkpoint to the mesh, one shard at a time.

    A slice that several devices need is read once. Host memory needs room for one shard of one
    parameter.

    Args:
      source: the checkpoint.
      config: the model; its `param_dtype` is the type of the result.
      mesh: mesh of the parameters; one device (1x1x1) by default.
      rules: logical axes to mesh axes, see `sharding.LOGICAL_RULES`.
      ignored: names of tensors that are not parameters.

    Returns:
      Unboxed parameters with the structure of `Transformer(config).init(...)["params"]` without
      LoRA.

    Raises:
      ValueError: a tensor is missing, unknown or of the wrong shape; the message names it.
    """
    mesh = create_mesh() if mesh is None else mesh
    check(source, config, ignored)
    boxed = abstract_params(config)
    abstract, places = flatten(boxed), flatten(shardings(boxed, mesh, rules))
    params = {
        row.path: _place(source, row, config, abstract[row.path], places[row.path])
        for row in _rows(abstract)
    }
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _rows(abstract: dict[str, jax.ShapeDtypeStruct]) -> list[Row]:
    rows = [row for row in TABLE if row.path in abstract]
    if unknown := sorted(abstract.keys() - {row.path for row in rows}):
        raise ValueError(f"parameters {unknown} are not in the table of names")
    return rows


def check(source: Source, config: TransformerConfig, ignored: frozenset[str] = frozenset()) -> None:
    """Raises the ValueError that `load_params` would raise, but reads only names and shapes."""
    abstract, wanted = flatten(abstract_params(config)), {}
    for row in _rows(abstract):
        shape = abstract[row.path].shape
        shape = shape[1:] if row.path.startswith("layers/") else shape
        for layer in layers_of(row, config):
            name = getattr(row, source.naming).format(layer=layer)
            wanted[name] = file_shape(row, shape)
    found = source.names() - ignored
    for problem, names in (
        ("are missing from the checkpoint", wanted.keys() - found),
        ("of the checkpoint have no place in the model", found - wanted.keys()),
    ):
        if names:
            shown = sorted(names)
            more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            raise ValueError(f"tensors {', '.join(shown[:8])}{more} {problem}")
    for name, shape in wanted.items():
        if source.shape(name) != shape:
            raise ValueError(
                f"tensor {name} has shape {source.shape(name)}; the configuration asks for {shape}"
            )


def _place(source, row, config, abstract, sharding) -> jax.Array:
    """One parameter, built from its shards."""
    devices: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(abstract.shape).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index, abstract.shape, strict=True)
        )
        devices.setdefault(bounds, []).append(device)
    pieces = []
    for bounds, holders in devices.items():
        shard = _read_shard(source, row, config, abstract, tuple(slice(*x) for x in bounds))
        pieces += [jax.device_put(shard, device) for device in holders]
        jax.block_until_ready(pieces[-len(holders) :])
    return jax.make_array_from_single_device_arrays(abstract.shape, sharding, pieces)


def _read_shard(source, row, config, abstract, index) -> np.ndarray:
    """Part `index` of a parameter in its type; stacks the tensors of the layers."""
    shape = tuple(part.stop - part.start for part in index)
    name = getattr(row, source.naming)
    if not row.path.startswith("layers/"):
        # Copy: the array on the device must not share the memory of a mapped file.
        return np.array(_read(source, row, name, abstract.shape, index), abstract.dtype, order="C")
    shard = np.empty(shape, abstract.dtype)
    for i, layer in enumerate(range(index[0].start, index[0].stop)):
        part = _read(source, row, name.format(layer=layer), abstract.shape[1:], index[1:])
        shard[i] = part.astype(abstract.dtype)
    return shard


def _read(source, row, name, shape, index) -> np.ndarray:
    """Part `index` of one tensor of shape `shape`, in our layout.

    If the file joins several axes, this reads the rows within the bounds of the first axis, and
    then cuts the others.
    """
    if row.inputs is None:
        return source.read(name, index)
    groups = [(0, row.inputs), (row.inputs, len(shape))][0 if row.inputs else 1 :]
    wanted, sizes = [], []
    for start, stop in groups:
        inner = math.prod(shape[start + 1 : stop])
        wanted.append(slice(index[start].start * inner, index[start].stop * inner))
        sizes += [index[start].stop - index[start].start, *shape[start + 1 : stop]]
    read = source.read(name, tuple(reversed(wanted)))
    if row.rotated and source.interleaved:
        pairs = read.reshape(-1, shape[-1] // 2, 2, *read.shape[1:])
        read = pairs.swapaxes(1, 2).reshape(read.shape)
    first = {start for start, _ in groups}
    cut = tuple(slice(None) if i in first else part for i, part in enumerate(index))
    return read.T.reshape(sizes)[cut]


def file_tensors(
    config: TransformerConfig, params: ArrayTree
) -> Iterator[tuple[Row, int, str, jax.ShapeDtypeStruct]]:
    """(row, layer, safetensors name, shape and type) of each tensor, in the order of a file."""
    flat = flatten(params)
    for row in TABLE:
        if row.path in flat:
            leaf = flat[row.path]
            shape = leaf.shape[1:] if row.path.startswith("layers/") else leaf.shape
            for layer in layers_of(row, config):
                shaped = jax.ShapeDtypeStruct(file_shape(row, shape), leaf.dtype)
                yield row, layer, row.hf.format(layer=layer), shaped


def to_file_layout(row: Row, leaf: jax.Array, layer: int) -> np.ndarray:
    """One tensor in the layout of a safetensors file, on the host."""
    tensor = np.asarray(leaf[layer] if row.path.startswith("layers/") else leaf)
    if row.inputs is not None:
        tensor = tensor.reshape(file_shape(row, tensor.shape)[::-1]).T
    return np.ascontiguousarray(tensor)
