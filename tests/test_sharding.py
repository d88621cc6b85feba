import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from plain_logits import plain_logits
from published_shapes import QWEN2P5_7B

from dfpo_jax.models import (
    PRESETS,
    EnsembleHead,
    ImplicitQuantileHead,
    QuantileHead,
    Transformer,
    ValueFlow,
)
from dfpo_jax.sharding import (
    LOGICAL_RULES,
    batch_sharding,
    create_mesh,
    mesh_context,
    put_batch,
    replicated,
    shardings,
)
from dfpo_jax.training.config import OptimizerConfig
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.update import init_policy

TINY = dataclasses.replace(PRESETS["tiny"], tie_embeddings=False, qkv_bias=True, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, size=(8, 6)).astype(np.int32)
VALID = np.ones((8, 6), np.float32)
VALID[0, :3] = 0
VALID[3] = 0
OPTIMIZER = optax.adamw(1e-2)


def init(key, config=TINY):
    """Boxed parameters of a decoder and its optimizer state."""
    params = Transformer(config).init(key, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)))
    return {"params": params, "opt_state": OPTIMIZER.init(params), "step": jnp.zeros((), jnp.int32)}


def update(state, tokens, valid):
    """One optimizer step on a stand-in loss."""

    def loss(params):
        model = Transformer(TINY)
        hidden, _ = model.apply(params, tokens, valid)
        logits = jax.nn.log_softmax(plain_logits(params["params"], hidden))
        return jnp.sum(logits[..., 0] * valid) / jnp.sum(valid)

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt_state = OPTIMIZER.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, value


def specs(tree):
    """Flat {path: PartitionSpec} of a tree of shardings, boxes removed."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)): leaf.spec
        for path, leaf in flat
    }


# The mesh


def test_mesh_axes_and_sizes():
    assert jax.device_count() == 8
    assert dict(create_mesh(2, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(create_mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert dict(create_mesh(fsdp=-1).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(create_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(create_mesh(-1, devices=jax.devices()[:3]).shape) == {
        "data": 3,
        "fsdp": 1,
        "tensor": 1,
    }
    mesh = create_mesh(2, devices=jax.devices()[4:])
    assert mesh.devices.ravel().tolist() == jax.devices()[4:6]
    assert sorted(d.id for d in create_mesh(2, 2, 2).devices.ravel()) == list(range(8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, -1, 1), "data=3, fsdp=-1, tensor=1; .*3, must divide the device count, 8"),
        ((16, -1, 1), "data=16, fsdp=-1, tensor=1; .*16, must divide the device count, 8"),
        ((4, 4, 1), "data=4, fsdp=4, tensor=1; their product, 16, exceeds the device count, 8"),
        ((-1, -1, 1), "data=-1, fsdp=-1, tensor=1; .*at most one -1"),
        ((0, 1, 1), "data=0, fsdp=1, tensor=1; each must be at least 1"),
        ((1, 1, -2), "data=1, fsdp=1, tensor=-2; each must be at least 1"),
    ],
)
def test_bad_mesh_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        create_mesh(*sizes)


# Layouts

LAYOUT = {
    "embedding": P("tensor", "fsdp"),
    "final_norm/scale": P("fsdp"),
    "head": P("fsdp", "tensor"),
    "layers/attention/key/bias": P(None, "tensor", None),
    "layers/attention/key/kernel": P(None, "fsdp", "tensor", None),
    "layers/attention/key_norm/scale": P(None, None),
    "layers/attention/output/kernel": P(None, "tensor", None, "fsdp"),
    "layers/attention/query/bias": P(None, "tensor", None),
    "layers/attention/query/kernel": P(None, "fsdp", "tensor", None),
    "layers/attention/query_norm/scale": P(None, None),
    "layers/attention/value/bias": P(None, "tensor", None),
    "layers/attention/value/kernel": P(None, "fsdp", "tensor", None),
    "layers/attention_norm/scale": P(None, "fsdp"),
    "layers/mlp/down/kernel": P(None, "tensor", "fsdp"),
    "layers/mlp/gate/kernel": P(None, "fsdp", "tensor"),
    "layers/mlp/up/kernel": P(None, "fsdp", "tensor"),
    "layers/mlp_norm/scale": P(None, "fsdp"),
}
ABSENT = {
    "tiny": lambda name: (
        name == "head" or "bias" in name or "key_norm" in name or "query_norm" in name
    ),
    "qwen3_8b": lambda name: "bias" in name,
    "qwen2p5_7b": lambda name: "key_norm" in name or "query_norm" in name,
}


@pytest.mark.parametrize("name", ABSENT)
def test_layout_of_every_parameter(name):
    config = QWEN2P5_7B if name == "qwen2p5_7b" else PRESETS[name]
    abstract = jax.eval_shape(lambda key: init(key, config), jax.random.key(0))
    mesh = create_mesh(2, 2, 2)
    expected = {k: v for k, v in LAYOUT.items() if not ABSENT[name](k)}
    result = shardings(abstract, mesh)
    assert specs(result["params"]["params"]) == expected
    moments = result["opt_state"][0]
    assert specs(moments.mu["params"]) == specs(moments.nu["params"]) == expected
    assert moments.count.spec == result["step"].spec == P()
    assert jax.tree.structure(result) == jax.tree.structure(abstract)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_layout_of_the_optimizer_states_of_8b(name):
    """AdamW's moments lie as the parameters do; Adafactor's means are whole and few."""
    config = OptimizerConfig(name=name, moment_dtype="bfloat16")
    optimizer, model = make_optimizer(config, 10), Transformer(PRESETS["qwen3_8b"])
    abstract = jax.eval_shape(
        lambda key: optimizer.init(init_policy(model, key)), jax.random.key(0)
    )
    layout = jax.tree.leaves(nn.unbox(shardings(abstract, create_mesh(2, 2, 2))))
    arrays = jax.tree.leaves(nn.unbox(abstract))
    if name == "adafactor":
        assert all(x.spec == P() for x in layout)
        assert sum(x.size * x.dtype.itemsize for x in arrays) < 200e6
        return
    expected = {k: v for k, v in LAYOUT.items() if not ABSENT["qwen3_8b"](k)}
    moments = [x for x in zip(layout, arrays, strict=True) if x[1].shape]
    assert len(moments) == 2 * len(expected)
    for part, dtype in (
        (moments[: len(expected)], "bfloat16"),
        (moments[len(expected) :], "float32"),
    ):
        assert {x.dtype for _, x in part} == {jnp.dtype(dtype)}
        assert [str(x.spec) for x, _ in part] == [str(expected[k]) for k in sorted(expected)]


@pytest.mark.parametrize(
    ("module", "first", "inputs"),
    [
        (ValueFlow(), "trunk/kernel", (jnp.ones((2, 3, 4)), 0.0, 0.0)),
        (QuantileHead(8), "output/kernel", ()),
        (EnsembleHead(2), "output/kernel", ()),
        (ImplicitQuantileHead(), "features/kernel", (jnp.ones(4),)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_heads_have_a_layout(module, first, inputs):
    abstract = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((2, 3, 8)), *inputs)
    found = specs(shardings(abstract, create_mesh(2, 2, 2))["params"])
    assert found.pop(first) == P("fsdp", None)
    assert found and all(not any(spec) for spec in found.values())


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_an_axis_that_does_not_divide_is_whole():
    tree = {"a": boxed((6, 4, 3), "embed", "mlp", "layers"), "b": boxed((3,), "heads")}
    mesh = create_mesh(1, 2, 2)
    result = shardings(tree, mesh)
    assert result["a"].value.spec == P("fsdp", "tensor", None)
    assert result["b"].value.spec == P(None)
    # The axis that would not divide leaves its mesh axis to the next name that asks for it.
    tree = {"a": boxed((3, 4), "vocab", "mlp")}
    assert shardings(tree, mesh)["a"].value.spec == P(None, "tensor")


def test_rules_are_data():
    mesh = create_mesh(2, 2, 2)
    tree = {"a": boxed((8, 8), "embed", "mlp"), "b": jnp.ones((8, 8)), "c": boxed((8,), None)}
    result = shardings(tree, mesh, {**LOGICAL_RULES, "embed": ("data", "fsdp"), "mlp": None})
    assert result["a"].value.spec == P(("data", "fsdp"), None)
    assert result["b"] == replicated(mesh)
    assert result["c"].value.spec == P(None)
    with pytest.raises(ValueError, match="logical axis 'width' has no rule; there are batch"):
        shardings({"a": boxed((8,), "width")}, mesh)
    with pytest.raises(ValueError, match=re.escape("shape (8, 8) has the logical axes ('mlp',)")):
        shardings({"a": boxed((8, 8), "mlp")}, mesh)


# Batches


def test_batches_are_split_over_data_and_fsdp():
    mesh = create_mesh(2, 2, 2)
    assert batch_sharding(mesh).spec == P(("data", "fsdp"))
    tree = {"tokens": TOKENS, "weight": np.arange(8.0, dtype=np.float32), "count": np.int32(3)}
    placed = put_batch(tree, mesh)
    assert placed["tokens"].sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert {s.data.shape for s in placed["tokens"].addressable_shards} == {(2, 6)}
    assert {s.data.shape for s in placed["weight"].addressable_shards} == {(2,)}
    assert placed["count"].sharding.is_fully_replicated
    for name, x in tree.items():
        np.testing.assert_array_equal(placed[name], x)
        assert placed[name].dtype == x.dtype
    moved = put_batch(placed, create_mesh(1, 8, 1))
    np.testing.assert_array_equal(moved["tokens"], TOKENS)


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match=r"\['x'\] has 6 rows; data \* fsdp, 4, must divide"):
        put_batch({"x": np.zeros((6, 2))}, create_mesh(2, 2, 2))


# Results


@pytest.fixture(scope="module")
def single():
    """Two updates without any mesh: (initial state, final state, losses)."""
    initial, losses = jax.jit(init)(jax.random.key(0)), []
    state, step = initial, jax.jit(update)
    for _ in range(2):
        state, loss = step(state, TOKENS, VALID)
        losses.append(float(loss))
    return initial, state, losses


def test_a_state_is_born_in_its_layout(single):
    mesh = create_mesh(2, 2, 2)
    layout = shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    with mesh_context(mesh):
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0))
    assert jax.tree.map(lambda x: x.sharding, state) == layout
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(single[0]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "sizes"),
    [
        (jax.set_mesh, (1, 1, 1)),
        (jax.set_mesh, (2, 2, 2)),
        (mesh_context, (2, 2, 2)),
        (mesh_context, (1, 1, 8)),  # more devices than heads
    ],
)
def test_updates_on_a_mesh_equal_those_on_one_device(single, context, sizes):
    mesh = create_mesh(*sizes)
    with context(mesh):
        layout = shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
        state = jax.device_put(single[0], layout)
        batch = put_batch((TOKENS, VALID), mesh)
        step, losses = jax.jit(update, out_shardings=(layout, replicated(mesh))), []
        for _ in range(2):
            state, loss = step(state, *batch)
            losses.append(float(loss))
    np.testing.assert_allclose(losses, single[2], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(single[1]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5)
    kernel = state["params"]["params"]["layers"]["mlp"]["up"]["kernel"].value
    shards = {shard.data.shape for shard in kernel.addressable_shards}
    assert shards == {(2, 32 // sizes[1], 64 // sizes[2])}


def test_activations_are_split_like_the_batch(single):
    mesh = create_mesh(2, 2, 2)
    with mesh_context(mesh):
        params = jax.device_put(single[0]["params"], replicated(mesh))
        hidden, _ = jax.jit(Transformer(TINY).apply)(params, TOKENS, VALID)
    # Nothing but the constraints inside the model asks for this layout.
    assert hidden.sharding.is_equivalent_to(batch_sharding(mesh), 3)


def test_mesh_context_restores_what_was_there():
    before = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    with mesh_context(create_mesh(2, 2, 2)) as mesh:
        assert jax.sharding.get_abstract_mesh().shape == mesh.shape
        assert dict(nn.get_logical_axis_rules()) == LOGICAL_RULES
    assert (jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()) == before
