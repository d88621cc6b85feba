"""Models and fields small enough to follow by hand, ragged rollouts, and random states."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax import memory
from dfpo_jax.critics import Flow
from dfpo_jax.models import Transformer, TransformerConfig, ValueFlowConfig, decode
from dfpo_jax.tokenizers import character_tokenizer
from dfpo_jax.types import Rollout, TrainState

VOCAB, WIDTH = 20, 16
DECODER = TransformerConfig(VOCAB, WIDTH, 2, 2, 2, 8, 32, max_positions=64)
UNTIED = dataclasses.replace(DECODER, tie_embeddings=False)
HEAD = ValueFlowConfig(hidden=8, num_blocks=1, condition_dim=8, time_features=4)
# Every loss of the critic has a weight.
FLOW = Flow(
    head=HEAD,
    num_samples=4,
    num_steps=2,
    num_quantiles=5,
    dcfm_weight=0.5,
    cvar_weight=0.3,
    upper_gain_weight=0.2,
    mean_shift_weight=0.1,
    tail_shape_weight=0.1,
    tail_curvature_weight=0.1,
    tail_alpha=0.3,
    tail_beta=0.3,
    uncertainty="discount",
)


SLOPE = 0.6


def constant(centre):
    """A field [B, T] that shifts the noise: z_1 = eps + centre, by any solver."""
    return lambda z, t, d: jnp.broadcast_to(jnp.asarray(centre)[..., None], z.shape) + 0 * z


def widening(centre):
    """z_1 = exp(SLOPE) eps + centre in the flow map, an exponential growth in the field."""

    def velocity(z, t, d):
        field = SLOPE * z
        jump = (math.exp(SLOPE) - 1) * z + jnp.asarray(centre)[..., None]
        return jnp.where(d > 0.5, jump, field)

    return velocity


@dataclasses.dataclass(frozen=True, eq=False)
class Markov:
    """Stands in for the decoder; its state is an embedding of the last token alone.

    Attributes:
      config: sizes; an untied output projection named "head", as in the decoder.
      shapes: shapes of the tokens of every *traced* call.
      calls: one entry per *executed* call, filled only where `count` is set.
      count: whether to.
    """

    config: TransformerConfig = UNTIED
    shapes: list = dataclasses.field(default_factory=list)
    calls: list = dataclasses.field(default_factory=list)
    count: bool = False

    def init(self, key, *inputs, method=None):
        del inputs, method
        shape, axes = (self.config.vocab_size, self.config.d_model), ("vocab", "embed")
        keys = jax.random.split(key)
        embedding = jax.random.normal(keys[0], shape)
        head = 0.5 * jax.random.normal(keys[1], shape[::-1])
        return {
            "params": {
                "embedding": nn.LogicallyPartitioned(embedding, axes),
                "head": nn.LogicallyPartitioned(head, axes[::-1]),
            }
        }

    def apply(self, variables, *inputs, method=None):
        params = variables["params"]
        if method == "logits":
            return inputs[0] @ params["head"]
        tokens, valid, *cache = inputs
        assert tokens.shape == valid.shape
        self.shapes.append(tokens.shape)
        if self.count:
            jax.debug.callback(lambda: self.calls.append(tokens.shape))
        return params["embedding"][tokens], (cache or [None])[0]


def markov_params(key=0, vocab=VOCAB, width=WIDTH):
    """Random parameters of `Markov` without boxes."""
    rng = np.random.default_rng(key)
    return {
        "embedding": rng.normal(size=(vocab, width)).astype(np.float32),
        "head": (0.5 * rng.normal(size=(width, vocab))).astype(np.float32),
    }


def table_model(vocab):
    """A decoder whose next-token logits can follow a table, see `table_params`."""
    sizes = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 2, "d_ff": 1}
    return Transformer(
        TransformerConfig(vocab, vocab, **sizes, tie_embeddings=False, max_positions=64)
    )


def table_params(log_table):
    """Parameters with which `table_model` follows a table [V, V] of next-token logits.

    Layers add nothing, so that the embedding, one-hot, reaches the head.
    """
    table = np.asarray(log_table, np.float32)
    model, dummy = table_model(len(table)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), dummy, dummy)["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), nn.unbox(shapes))
    scale = np.full(len(table), (1 / len(table) + model.config.norm_eps) ** 0.5, np.float32)
    params["final_norm"]["scale"] = scale
    return {**params, "embedding": np.eye(len(table), dtype=np.float32), "head": table}


def widened(config, cache, columns):
    """The cache with more columns."""

    def grow(x, axis):
        return jnp.pad(x, [(0, columns if n == axis else 0) for n in range(4)])

    return cache.replace(
        keys=tuple(grow(x, decode.columns_of_keys(config)) for x in cache.keys),
        values=tuple(grow(x, 2) for x in cache.values),
        valid=jnp.pad(cache.valid, ((0, 0), (0, columns))),
    )


@pytest.fixture
def traced(monkeypatch):
    """Shapes of the tokens of every prefill and decoding step that is traced from now on."""
    memory.clear_caches()
    shapes = []

    def spy(inner):
        def recorded(*inputs, **options):
            shapes.append(inputs[2].shape)
            return inner(*inputs, **options)

        return recorded

    for name in ("prefill", "step"):
        monkeypatch.setattr(decode, name, spy(getattr(decode, name)))
    yield shapes
    memory.clear_caches()


@pytest.fixture
def steps(monkeypatch):
    """One entry for every decoding step that is executed from now on."""
    memory.clear_caches()
    executed, inner = [], decode.step

    def counted(*inputs, **options):
        jax.debug.callback(lambda: executed.append(1))
        return inner(*inputs, **options)

    monkeypatch.setattr(decode, "step", counted)
    yield executed
    memory.clear_caches()


def follow(text, *, size=20):
    """A tokenizer, and parameters by which each character is followed by the next one of `text`."""
    tokenizer = character_tokenizer("12345")
    table = np.where(np.eye(size) > 0, 0.0, -50.0)
    ids = tokenizer.convert_tokens_to_ids(list(text))
    for before, after in zip(ids, ids[1:], strict=False):
        table[before] = -50.0
        table[before, after] = 0.0
    return tokenizer, table_params(table)


def ragged_rollout(seed=0, batch=8, prompt=4, response=5, vocab=VOCAB):
    """A rollout whose first rows are: full and truncated, with a hole, one token, empty."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((batch, response), np.float32)
    mask[0] = 1
    mask[1, [0, 2, 3]] = 1
    mask[2, 0] = 1
    for row in range(4, batch):
        mask[row, : rng.integers(1, response + 1)] = 1
    mask[-1] = 1
    lengths = rng.integers(1, prompt + 1, batch)
    prompt_mask = (np.arange(prompt)[None] >= prompt - lengths[:, None]).astype(np.float32)
    truncated = np.zeros(batch, bool)
    truncated[[0, -1]] = True
    rewards = rng.uniform(size=batch).astype(np.float32)
    return Rollout(
        prompt_tokens=rng.integers(0, vocab, (batch, prompt)).astype(np.int32),
        prompt_mask=prompt_mask,
        tokens=rng.integers(0, vocab, (batch, response)).astype(np.int32),
        mask=mask,
        log_probs=(-rng.uniform(1.0, 4.0, (batch, response)) * mask).astype(np.float32),
        truncated=truncated,
        rewards=rewards,
        clean_rewards=rewards,
        groups=(np.arange(batch) // 2).astype(np.int32),
        samples=2,
    )


def randomised(tree, seed=0, scale=0.3):
    """Adds noise to every array: heads that start at 0 would hide mistakes."""
    rng = np.random.default_rng(seed)

    def one(x):
        return (np.asarray(x) + scale * rng.normal(size=x.shape)).astype(np.float32)

    return jax.tree.map(one, nn.unbox(tree))


def make_state(algorithm, policy=None, step=0, kl_coefficient=0.2, shift=0.4, scale=0.7):
    """A train state with random parameters, another random policy as reference, odd units."""
    policy = markov_params() if policy is None else policy
    params = algorithm.init(jax.random.key(0), policy)
    critic = {k: randomised(v, seed=1) for k, v in params.items() if k != "policy"}
    return TrainState(
        step=jnp.int32(step),
        skipped=jnp.int32(0),
        params={"policy": policy, **critic},
        opt_state=None,
        reference=randomised(policy, seed=2, scale=0.1),
        controls={name: jnp.float32(value) for name, value in algorithm.controls.items()}
        | {
            "value_shift": jnp.float32(shift),
            "value_scale": jnp.float32(scale),
            "kl_coefficient": jnp.float32(kl_coefficient),
        },
        key=jax.random.key(3),
    )


def take(batch, rows):
    """Some rows of a batch."""
    return jax.tree.map(lambda x: x[rows], batch)


def objective(terms):
    """What the learner differentiates, for one whole batch."""
    return sum(t.weight * t.total / jnp.maximum(t.count, 1.0) for t in terms.values())


def evaluator(algorithm):
    """Jitted (params, batch, context, key) -> (terms, gradients).

    Gradients of the objective are to the parameters ("params"), and to every float array in the
    batch ("batch") and in the context ("context"), by path.
    """

    def floats(tree):
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }

    def put(tree, values):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: values.get(jax.tree_util.keystr(path), leaf), tree
        )

    def run(params, batch, context, key):
        def loss(inputs):
            terms = algorithm.loss(
                inputs["params"],
                put(batch, inputs["batch"]),
                put(context, inputs["context"]),
                key,
            )
            return objective(terms), terms

        inputs = {"params": params, "batch": floats(batch), "context": floats(context)}
        grads, terms = jax.grad(loss, has_aux=True)(inputs)
        return terms, grads

    return jax.jit(run)
