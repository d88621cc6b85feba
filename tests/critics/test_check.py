"""What is refused of a critic of the user's own, before anything compiles."""

import jax
import jax.numpy as jnp
import pytest
from wrong_parts import refused

from dfpo_jax.critics import Critic, Quantile, Scalar, check_critic
from dfpo_jax.types import Loss

SCALAR, QUANTILE = Scalar().build(), Quantile(4).build()


def losses(**changes):
    """Losses whose `Loss` has other fields."""

    def changed(*inputs):
        return {"loss": SCALAR.losses(*inputs)["loss"]._replace(**changes)}

    return {"losses": changed}


def fixed(value):
    return lambda *inputs: value


def cut(name):
    """A function whose result lacks the last axis's last entry."""
    return {name: lambda *inputs: getattr(QUANTILE, name)(*inputs)[..., :-1, :]}


def while_loop(params, states, *_):
    value = jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, states[:, :-1, 0])
    return {"loss": Loss(value)}


@pytest.mark.parametrize("critic", [SCALAR, QUANTILE])
def test_a_right_critic_passes(critic):
    check_critic(critic, "m:C")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": None}, "init is None; it must be a function"),
        ({"losses": "mse"}, "losses is 'mse'; it must be a function"),
        ({"paths": 3}, "paths is 3; it must be a function"),
        ({"gives": {"value"}}, "gives is {'value'}; it must be a frozenset of names"),
        ({"gives": frozenset({1})}, "gives is frozenset({1}); it must be a frozenset of names"),
        ({"init": lambda key: {}}, "init raised TypeError: "),
        ({"init": fixed({"w": "zero"})}, "init returned str at ['w']; parameters must be arrays"),
        (
            {"init": lambda key, width: {"w": jnp.zeros(width, int)}},
            "init returned int32 (8,) at ['w']; parameters must be arrays of floats",
        ),
        ({"read": lambda p, s: p["nothing"]}, "read raised KeyError: 'nothing'"),
        (
            {"law": lambda v: v},
            "law returned float32 (2, 4); it must return floats [B, T, M]",
        ),
        (
            {"law": lambda v: v[:, :1, None]},
            "law returned float32 (2, 1, 1); it must return floats",
        ),
        (
            {"law": fixed(None)},
            "law returned NoneType; it must return floats [B, T, M] (here (2, 4",
        ),
        (
            {"law": lambda v: jnp.zeros((*v.shape, 2), int)},
            "law returned int32 (2, 4, 2); it must return floats [B, T, M] (here (2, 4, M))",
        ),
        (
            {"law": lambda v: jnp.zeros((*v.shape, v.shape[1]))},
            "law returned float32 (2, 3, 3); it must return floats [B, T, M] (here (2, 3, 4))",
        ),
        ({"gives": frozenset({"law"})}, "gives has 'law', and law returned float32 (2, 1, 1); one"),
        (
            {"returns": lambda *x: SCALAR.returns(*x)[..., 0]},
            "returns returned float32 (2, 3); it ",
        ),
        ({"returns": lambda *x: SCALAR.returns(*x[:3], float(x[3]))}, "returns raised "),
        (
            {"targets": lambda *x: {"mean": jnp.mean(x[2].rewards)}},
            "targets returned float32 () at ['mean']; every leaf must be an array with",
        ),
        ({"targets": fixed("rows")}, "targets returned str at its root; every leaf must be an arr"),
        (
            {"losses": fixed(jnp.zeros((2, 3)))},
            "losses returned float32 (2, 3); it must return a d",
        ),
        ({"losses": fixed({})}, "losses returned no loss; there must be at least one"),
        (
            {"losses": fixed({"a": jnp.zeros((2, 3))})},
            "losses returned float32 (2, 3) as 'a'; it must return a dict of dfpo_jax.types.Loss",
        ),
        (
            losses(per_token=jnp.zeros(2)),
            "losses returned float32 (2,) as per_token of 'loss'; it must return floats [B, R] "
            "(here (2, 3))",
        ),
        (losses(per_token=1.0), "losses returned float as per_token of 'loss'; it must return flo"),
        (losses(mask=jnp.zeros((3, 2))), "losses returned float32 (3, 2) as mask of 'loss'; it mu"),
        (losses(weight=1), "losses returned int as weight of 'loss'; it must be a float or an arr"),
        (losses(weight=jnp.ones(2)), "losses returned float32 (2,) as weight of 'loss'; it must"),
        ({"losses": while_loop}, "the gradient of losses raised ValueError: Reverse-mode differe"),
        (
            {"gives": frozenset({"value", "heads"})},
            "gives has 'heads', and heads is None; it must be a function",
        ),
        (
            {"heads": lambda v: v},
            "heads returned float32 (2, 4); it must return floats [B, T, N] (here (2, 4, N))",
        ),
        (
            {"paths": lambda v: v},
            "paths returned float32 (2, 4); it must return floats [times, B, ",
        ),
    ],
)
def test_what_breaks_the_interface_is_one_line(changes, said):
    assert refused(f"m:C: {said}", check_critic, SCALAR._replace(**changes), "m:C")


@pytest.mark.parametrize(("name", "here"), [("law", "(2, 4, M)"), ("returns", "(2, 3, S)")])
def test_a_missing_state_or_token_is_seen(name, here):
    said = refused(
        f"m:C: {name} returned float32 ", check_critic, QUANTILE._replace(**cut(name)), "m:C"
    )
    assert said.endswith(f"(here {here})")


def test_one_result_for_every_number_of_states_is_seen():
    """`predict` reads s_0 .. s_{R-1}, `trajectories` one state."""
    wrong = SCALAR._replace(law=lambda values: jnp.zeros((2, 4, 1)))
    assert refused("m:C: law returned float32 (2, 4, 1); it must", check_critic, wrong, "m:C")


def test_what_is_no_critic_is_named():
    wanted = "it must return a dfpo_jax.critics.interface.Critic"
    assert refused(f"m:C: build returned NoneType; {wanted}", check_critic, None, "m:C")
    assert refused(f"m:C: build returned tuple; {wanted}", check_critic, tuple(SCALAR), "m:C")
    assert Critic._fields[:3] == ("init", "read", "law")
