"""LoRA in the decoder: against plain numpy, against folded kernels, and its trees and settings."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from plain_logits import plain_logits

from dfpo_jax.models import PRESETS, LoraConfig, Transformer, lora
from dfpo_jax.models.transformer import Projection
from dfpo_jax.models.weights import abstract_params
from dfpo_jax.sharding import create_mesh, shardings

BASE = dataclasses.replace(PRESETS["tiny"], tie_embeddings=False, qkv_bias=True)
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, BASE.vocab_size, (2, 7)).astype(np.int32)


def adapted(**fields):
    return dataclasses.replace(BASE, lora=dataclasses.replace(LORA, **fields))


def first_params(config):
    init = jax.jit(lambda key: Transformer(config).init(key, TOKENS, TOKENS)["params"])
    return nn.unbox(init(jax.random.key(0)))


@functools.cache
def moved_params():
    """Parameters whose B is not 0 any more."""
    rng = np.random.default_rng(1)
    trained, frozen = lora.split(first_params(adapted()))
    trained = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype("f"), trained)
    return lora.join(trained, frozen)


def logits(config, params):
    def run(params):
        model, valid = Transformer(config), np.ones_like(TOKENS)
        hidden, _ = model.apply({"params": params}, TOKENS, valid)
        return plain_logits(params, hidden)

    return jax.jit(run)(params)


def names(tree):
    return {"/".join(path) for path in flax.traverse_util.flatten_dict(tree)}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "axes"),
    [
        ("query", (12,), (2, 4), ("embed", "heads", "head_dim")),
        ("output", (2, 4), (12,), ("heads", "head_dim", "embed")),
    ],
)
def test_a_projection_adds_the_scaled_low_rank_product(name, inputs, outputs, axes, variant):
    rng = np.random.default_rng(2)
    module = Projection(adapted(), inputs, outputs, axes, use_bias=True, name=name)
    x = rng.normal(size=(2, 3, *inputs)).astype(np.float32)
    params = nn.unbox(module.init(jax.random.key(0), x))["params"]
    assert params["lora_a"].shape == (*inputs, 3) and params["lora_b"].shape == (3, *outputs)
    params = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in params.items()}
    found = variant(module.apply)({"params": params}, x)
    w, a, b, bias = (params[k].astype(float) for k in ("kernel", "lora_a", "lora_b", "bias"))
    expected = np.zeros((2, 3, *outputs))
    for i, j in np.ndindex(2, 3):
        row = x[i, j].astype(float).reshape(-1)
        inner = [sum(row * a.reshape(len(row), 3)[:, r]) for r in range(3)]
        whole = row @ w.reshape(len(row), -1)
        for r in range(3):
            whole = whole + (6.0 / 3.0) * inner[r] * b.reshape(3, -1)[r]
        expected[i, j] = whole.reshape(outputs) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_starts_random_and_b_at_zero():
    wide = dataclasses.replace(adapted(rank=64), d_model=256)
    layers = first_params(wide)["layers"]
    for module in (layers["attention"]["query"], layers["mlp"]["down"]):
        assert not np.any(module["lora_b"])
        width = module["lora_a"].shape[1]
        assert np.std(module["lora_a"]) == pytest.approx(width**-0.5, rel=0.03)
        assert np.any(module["lora_a"][0] != module["lora_a"][1])  # layers differ


@pytest.mark.slow
def test_without_a_rank_nothing_is_there_and_with_one_the_model_starts_as_it_was():
    base, params = first_params(BASE), first_params(adapted())
    assert not [name for name in names(base) if "lora" in name]
    trained, frozen = lora.split(params)
    assert names(frozen) == names(base) == names(abstract_params(adapted()))
    assert jax.tree.map(np.shape, frozen) == jax.tree.map(np.shape, base)
    np.testing.assert_array_equal(logits(adapted(), params), logits(BASE, frozen))
    assert np.abs(logits(adapted(), moved_params()) - logits(BASE, frozen)).max() > 0.1


@pytest.mark.parametrize("targets", [("query", "down"), ["value"]])
def test_only_targets_have_updates(targets):
    config = adapted(targets=targets)
    assert hash(config) is not None
    trained, _ = lora.split(first_params(config))
    modules = {name.split("/")[-2] for name in names(trained)}
    assert modules == set(targets) and len(names(trained)) == 2 * len(targets)


def test_folded_parameters_are_the_adapted_model():
    params = moved_params()
    folded = lora.fold(params, LORA)
    assert names(folded) == names(first_params(BASE))
    np.testing.assert_allclose(logits(BASE, folded), logits(adapted(), params), atol=1e-5)
    again = lora.fold(folded, LORA)
    jax.tree.map(np.testing.assert_array_equal, again, folded)
    half = lora.fold(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), LORA)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_computing_in_half_precision_gives_half_precision():
    config = dataclasses.replace(adapted(), dtype="bfloat16")
    hidden, _ = Transformer(config).apply({"params": moved_params()}, TOKENS, np.ones_like(TOKENS))
    assert hidden.dtype == jnp.bfloat16
    whole = logits(adapted(), moved_params())
    np.testing.assert_allclose(logits(config, moved_params()), whole, atol=0.1)


def test_updates_are_float32_beside_parameters_in_half_precision():
    config = dataclasses.replace(adapted(), param_dtype="bfloat16")
    init = Transformer(config).init
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0), TOKENS, TOKENS))["params"]
    trained, frozen = lora.split(params)
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}


def test_split_and_join_undo_each_other():
    params = moved_params()
    trained, frozen = lora.split(params)
    assert names(trained) == {name for name in names(params) if name.endswith(("_a", "_b"))}
    assert names(trained) | names(frozen) == names(params)
    assert not names(trained) & names(frozen)
    jax.tree.map(np.testing.assert_array_equal, lora.join(trained, frozen), params)
    base = first_params(BASE)
    assert lora.split(base) == (base, {})
    with pytest.raises(ValueError, match="both trees have embedding, final_norm/scale"):
        lora.join(params, {name: frozen[name] for name in ("embedding", "final_norm")})


def test_updates_are_sharded_as_their_kernels_and_the_rank_is_whole():
    boxed = jax.eval_shape(Transformer(adapted()).init, jax.random.key(0), TOKENS, TOKENS)
    layers = nn.unbox(shardings(boxed["params"], create_mesh(2, 2, 2)))["layers"]
    query, output, down = (
        layers["attention"]["query"],
        layers["attention"]["output"],
        layers["mlp"]["down"],
    )
    assert query["lora_a"].spec == P(None, "fsdp", None)
    assert query["lora_b"].spec == P(None, None, "tensor", None)
    assert output["lora_a"].spec == P(None, "tensor", None, None)
    assert output["lora_b"].spec == P(None, None, "fsdp")
    assert (down["lora_a"].spec, down["lora_b"].spec) == (
        P(None, "tensor", None),
        P(None, None, "fsdp"),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "rank is -1; it must be 0 .off. or a positive integer"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be a number above 0"),
        ({"alpha": "x"}, "alpha is 'x'"),
        ({"targets": ("query", "mlp")}, "some of query, key, value, output, gate, up, down"),
        ({"targets": "query"}, "targets is 'query'; it must be a tuple"),
        ({"targets": (("up",),)}, "targets is "),
        ({"rank": 2, "targets": ()}, "targets is .* and rank 2; it must have some of query"),
    ],
)
def test_what_is_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


def test_a_section_in_place_of_its_dataclass_is_refused():
    with pytest.raises(ValueError, match="it must be a LoraConfig"):
        dataclasses.replace(BASE, lora={"rank": 2})
