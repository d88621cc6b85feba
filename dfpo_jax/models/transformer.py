"""Decoder of the Llama, Qwen2 and Qwen3 families, on whole sequences.

Logical axis names of parameters: "vocab", "embed", "layers", "heads", "kv_heads", "head_dim",
"mlp", "rank"; of activations: "batch", "length", "embed". `dfpo_jax.sharding` maps them to a mesh.
"""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dfpo_jax.models import lora
from dfpo_jax.models.attention import Segments, attention
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.rope import apply_rope, rope_tables
from dfpo_jax.types import Array

_ACTIVATIONS = ("batch", "length", "embed")
_LAYER_INPUT = "layer_input"


def _remat(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """Wraps the layer so that it keeps what `TransformerConfig.remat` says for the gradient."""
    if policy == "none":
        return block
    policies = {
        "full": None,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return nn.remat(block, prevent_cse=False, policy=policies[policy])


def _permuted(x: Array, index: Array) -> Array:
    """x[index], declaring the indices unique: the gradient is then a permutation, not a scatter."""
    return x.at[index].get(unique_indices=True, mode="promise_in_bounds")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x ** 2) + eps) * scale over the last axis, in float32.

    Source: Zhang and Sennrich 2019, equation 4.
    """

    config: TransformerConfig
    width: int
    axis: str

    def setup(self):
        """Creates the scale."""
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        self.scale = self.param("scale", init, (self.width,), jnp.dtype(self.config.param_dtype))

    def __call__(self, x: Array) -> Array:
        """[..., width] -> [..., width] in the compute type."""
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.config.norm_eps)
        scale = self.scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * scale).astype(self.config.dtype)


class Projection(nn.Module):
    """A linear map of the trailing axes of [B, T, *inputs] to [B, T, *outputs].

    If the configuration's `lora` targets its name, it adds a low-rank update: x W becomes
    x W + (alpha / rank) (x A) B, see `lora`.

    Attributes:
      config: the model's configuration.
      inputs: sizes of the input axes.
      outputs: sizes of the output axes.
      axes: logical names of the kernel's axes, inputs then outputs.
      std: standard deviation of the initial kernel; the configuration's by default.
      use_bias: whether to add a bias over the outputs.
    """

    config: TransformerConfig
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    std: float | None = None
    use_bias: bool = False

    def setup(self):
        """Creates the kernel, the bias, and LoRA's A (variance 1 / inputs) and B (zeros).

        A and B are always float32, because bfloat16 would round small optimizer steps away.
        """
        dtype = jnp.dtype(self.config.param_dtype)
        std = self.config.init_std if self.std is None else self.std
        init = nn.with_logical_partitioning(nn.initializers.normal(std), self.axes)
        self.kernel = self.param("kernel", init, self.inputs + self.outputs, dtype)
        if self.use_bias:
            axes = self.axes[len(self.inputs) :]
            init = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
            self.bias = self.param("bias", init, self.outputs, dtype)
        rank, count = self.config.lora.rank, len(self.inputs)
        self.adapted = rank > 0 and self.name in self.config.lora.targets
        if self.adapted:
            normal = nn.initializers.normal(math.prod(self.inputs) ** -0.5)
            init = nn.with_logical_partitioning(normal, (*self.axes[:count], "rank"))
            self.lora_a = self.param(lora.A, init, (*self.inputs, rank), jnp.float32)
            zeros = nn.initializers.zeros_init()
            init = nn.with_logical_partitioning(zeros, ("rank", *self.axes[count:]))
            self.lora_b = self.param(lora.B, init, (rank, *self.outputs), jnp.float32)

    def __call__(self, x: Array) -> Array:
        """Multiplies in the compute type."""
        dtype = jnp.dtype(self.config.dtype)
        # Two plain matrices: on CPU the gradient of a product with more axes is slower.
        rows, width = math.prod(x.shape[:2]), math.prod(self.inputs)
        kernel = self.kernel.astype(dtype).reshape(width, math.prod(self.outputs))
        inputs = x.astype(dtype).reshape(rows, width)
        out = inputs @ kernel
        if self.adapted:
            inner = inputs @ self.lora_a.astype(dtype).reshape(width, -1)
            update = self.lora_b.astype(dtype).reshape(inner.shape[1], -1)
            out = out + (self.config.lora.scale * inner) @ update
        if self.use_bias:
            out = out + self.bias.astype(dtype).reshape(1, -1)
        return out.reshape(*x.shape[:2], *self.outputs)


class Attention(nn.Module):
    """Projections, rotary embedding and attention of one layer."""

    config: TransformerConfig

    def setup(self):
        """Names the projections."""
        c = self.config
        project = functools.partial(Projection, c, (c.d_model,), use_bias=c.qkv_bias)
        queries, keys = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
        self.query = project(queries, ("embed", "heads", "head_dim"))
        self.key = project(keys, ("embed", "kv_heads", "head_dim"))
        self.value = project(keys, ("embed", "kv_heads", "head_dim"))
        axes, std = ("heads", "head_dim", "embed"), c.init_std / (2 * c.num_layers) ** 0.5
        self.output = Projection(c, queries, (c.d_model,), axes, std=std)
        if c.qk_norm:
            self.query_norm = RMSNorm(c, c.head_dim, "head_dim")
            self.key_norm = RMSNorm(c, c.head_dim, "head_dim")

    def __call__(self, x, rope, keep, segments):
        """[B, T, D] -> ([B, T, D], (keys, values) [B, T, K, H] each, or None if `keep` is None)."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        out = attention(q, k, v, self.config.attention, segments)
        return self.output(out), None if keep is None else (k, v)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (GLU variants), equation 6."""

    config: TransformerConfig

    def setup(self):
        """Names the projections."""
        c = self.config
        into = functools.partial(Projection, c, (c.d_model,), (c.d_ff,), ("embed", "mlp"))
        self.gate, self.up = into(), into()
        std = c.init_std / (2 * c.num_layers) ** 0.5
        self.down = Projection(c, (c.d_ff,), (c.d_model,), ("mlp", "embed"), std=std)

    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One pre-norm decoder layer in the form that `nn.scan` needs: it returns carry and output."""

    config: TransformerConfig

    def setup(self):
        """Names the parts."""
        self.attention_norm = RMSNorm(self.config, self.config.d_model, "embed")
        self.attention = Attention(self.config)
        self.mlp_norm = RMSNorm(self.config, self.config.d_model, "embed")
        self.mlp = MLP(self.config)

    def __call__(self, x, rope, keep, segments):
        """[B, T, D] -> ([B, T, D], keys and values, or None if `keep` is None)."""
        x = checkpoint_name(x, _LAYER_INPUT)
        update, cache = self.attention(self.attention_norm(x), rope, keep, segments)
        x = nn.with_logical_constraint(x + update, _ACTIVATIONS)
        x = nn.with_logical_constraint(x + self.mlp(self.mlp_norm(x)), _ACTIVATIONS)
        return x, cache


class Transformer(nn.Module):
    """The decoder up to its final norm; `vocabulary.token_statistics` applies the output matrix."""

    config: TransformerConfig

    def setup(self):
        """Names the parts; layers are stacked along a leading "layers" axis."""
        c = self.config
        dtype = jnp.dtype(c.param_dtype)
        normal = nn.initializers.normal(c.init_std)
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(normal, ("vocab", "embed")),
            (c.vocab_size, c.d_model),
            dtype,
        )
        stack = nn.scan(
            _remat(Block, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.layers = stack(c)
        self.final_norm = RMSNorm(c, c.d_model, "embed")
        if not c.tie_embeddings:
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(normal, ("embed", "vocab")),
                (c.d_model, c.vocab_size),
                dtype,
            )

    def __call__(
        self,
        tokens: Array,
        valid: Array | None,
        with_cache: bool = False,
        segments: Segments | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Hidden states after the final norm.

        A valid token attends to the valid tokens up to itself, in column order, and its position is
        the number of valid tokens before it. Padding on either side therefore changes nothing: the
        decoder moves it behind the tokens first.

        Args:
          tokens: [B, T] integers.
          valid: [B, T], bool or 0/1: 1 on tokens, 0 on padding; None with `segments`.
          with_cache: whether to return keys and values to decode from, see `decode.prefill`.
          segments: of rows that hold several sequences, see `Segments`; nothing is moved then.

        Returns:
          hidden: [B, T, D] in the compute type; meaningless where `valid` is 0.
          cache: None, or the rotated keys and the values, [L, B, T, K, H] each, those of valid
            tokens first.

        Raises:
          ValueError: T is above `config.max_positions`.
        """
        chex.assert_rank(tokens, 2)
        length, limit = tokens.shape[1], self.config.max_positions
        if length > limit:
            raise ValueError(f"tokens has {length} slots; at most {limit} are allowed")
        if segments is None:
            chex.assert_equal_shape([tokens, valid])
            empty = ~valid.astype(bool)
            order = jnp.argsort(empty, axis=1, stable=True)
            tokens = jnp.take_along_axis(tokens, order, axis=1)
            positions = jnp.arange(length)[None]
        else:
            positions = segments.positions
        rope = rope_tables(positions, self.config)

        # Without this the compiler makes a slow plan for looking up rows split over devices.
        table = nn.with_logical_constraint(self.embedding, ("vocab", None))
        x = jnp.take(table, tokens, axis=0).astype(self.config.dtype)
        x = nn.with_logical_constraint(x, _ACTIVATIONS)
        # Lifted transformations would trace a bool, but not the structure of a tree.
        keep = () if with_cache else None
        x, cache = self.layers(x, rope, keep, None if segments is None else segments.ids)
        x = self.final_norm(x)
        if segments is None:
            x = jax.vmap(_permuted)(x, jnp.argsort(order, axis=1))
        return nn.with_logical_constraint(x, _ACTIVATIONS), cache
