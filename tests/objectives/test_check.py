"""What is refused of an objective of the user's own, before anything compiles."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from wrong_parts import refused

from dfpo_jax import ops
from dfpo_jax.objectives import Clip, Entropy, Kl, Objective, check_objective
from dfpo_jax.types import Loss

OTHERS = {"entropy": Entropy().build(), "kl": Kl(0.1).build()}
CONTROLS = {"width": 1.0}


def reinforce(live, batch, context, own):
    return {"loss": Loss(-live.log_probs * batch.advantages)}


def network(live, batch, context, own):
    """An objective with parameters, rows and a control of its own."""
    baseline = live.hidden[:, -1] @ own["w"] + batch.own["objective"]["bonus"]
    gain = jnp.ones(batch.mask.shape) * context.controls["width"] * baseline[:, None]
    return {"loss": Loss(-live.log_probs * gain), "gain": Loss(gain, weight=0.0)}


NETWORK = Objective(
    network,
    init=lambda key, width: {"w": jax.random.normal(key, (width,))},
    prepare=lambda old, rollout: {"bonus": rollout.rewards},
    reward=lambda old: old.log_probs * old.controls["width"],
    controls=CONTROLS,
    observe=lambda controls: {"width": controls["value_scale"]},
    adapt=lambda controls, means: controls | {"width": 2 * controls["width"]},
)


def by_jax(controls, means):
    """Numbers that take a device to compute, as `ops.adaptive_kl_update` does."""
    return {
        "width": ops.adaptive_kl_update(
            controls["width"], 0.1, target=1.0, horizon=1.0, num_tokens_or_steps=1
        )
    }


def on_the_host(controls, means):
    return {name: float(value) for name, value in by_jax(controls, means).items()}


def while_loop(live, batch, context, own):
    return {
        "loss": Loss(jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, live.log_probs))
    }


def of_known_losses(controls, means):
    """By the means of its own losses, of those beside it, and of "kl_old"."""
    names = [f"policy/{name}" for name in ("loss", "gain", "entropy", "kl", "kl_old")]
    assert "policy/nothing" not in means and means.get("policy/nothing") is None
    mean = sum(means[name] for name in names)
    return {"width": mean} if math.isfinite(mean) else {}


@pytest.mark.parametrize(
    "objective",
    [
        Objective(reinforce),
        NETWORK,
        NETWORK._replace(adapt=by_jax),
        NETWORK._replace(adapt=of_known_losses),
        NETWORK._replace(adapt=on_the_host),
        Clip().build(),
    ],
)
def test_a_right_objective_passes(objective):
    check_objective(objective, "m:O", OTHERS)


def test_the_parts_that_stand_beside_pass_by_themselves():
    for part in (Entropy(0.1), Kl(0.1), Kl(0.1, where="reward", target=0.1), Kl()):
        check_objective(part.build(), "m:O", {})


def changed(**fields):
    """An objective whose `Loss` has other fields."""
    loss = Loss(jnp.zeros((2, 3)))._replace(**fields)
    return Objective(lambda *_: {"loss": loss})


def named(name):
    return lambda live, *_: {name: Loss(live.log_probs)}


def controlled(**changes):
    return NETWORK._replace(**changes)


KNOWN = "it must return finite numbers by name, of kl_coefficient, value_scale, value_shift, width"


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            reinforce,
            "build returned function; it must return a dfpo_jax.objectives.interface.Objec",
        ),
        (Objective(None), "terms is None; it must be a function"),
        (Objective(reinforce, {"reference"}), "needs is {'reference'}; it must be a frozenset"),
        (Objective(reinforce, adapt=0.1), "adapt is 0.1; it must be a function"),
        (Objective(lambda live: {}), "terms raised TypeError: "),
        (
            Objective(lambda live, batch, c, o: batch.nothing),
            "terms raised AttributeError: 'Batch' object has no",
        ),
        (
            Objective(lambda live, batch, c, o: {"a": Loss(live.log_probs - batch.ref_log_probs)}),
            "terms raised ",
        ),
        (
            Objective(lambda live, b, context, o: {"a": Loss(context.controls["width"])}),
            "terms raised KeyError",
        ),
        (
            Objective(lambda *_: jnp.zeros((2, 3))),
            "terms returned float32 (2, 3); it must return a d",
        ),
        (
            changed(per_token=jnp.zeros(())),
            "terms returned float32 () as per_token of 'loss'; it mu",
        ),
        (
            changed(per_token=jnp.zeros((2, 5))),
            "terms returned float32 (2, 5) as per_token of 'loss'",
        ),
        (changed(mask=jnp.zeros((2, 3))), "terms returned a mask of 'loss'; it must be None"),
        (changed(weight=0), "terms returned int as weight of 'loss'; it must be a float or an arr"),
        (Objective(while_loop), "the gradient of terms raised ValueError: Reverse-mode"),
        (
            Objective(lambda live, *_: {"kl": Loss(live.log_probs)}),
            "terms returned a loss 'kl', a name that is taken; taken are entropy, "
            "gradient_norm, kl, kl_coefficient, kl_old",
        ),
        (
            controlled(init=lambda key, width: {"w": 1.0}),
            "init returned float at ['w']; parameters",
        ),
        (controlled(init=None), "terms raised TypeError"),
        (
            controlled(prepare=lambda old, rollout: {"bonus": jnp.mean(rollout.rewards)}),
            "prepare returned float32 () at ['bonus']; every leaf must be an array with",
        ),
        (controlled(prepare=None), "terms raised KeyError: 'objective'"),
        (
            controlled(reward=lambda old: jnp.sum(old.log_probs, axis=1)),
            "reward returned float32 (2,); it must return floats [B, R] (here (2, 3))",
        ),
        (
            controlled(controls=("width",)),
            "controls is ('width',); it must be a mapping of numbers",
        ),
        (controlled(controls={"width": math.inf}), "controls returned inf for 'width'; it must"),
        (
            controlled(controls={"kl_coefficient": 1.0}),
            "controls has 'kl_coefficient', a name that is taken; taken are kl_coefficient, value_",
        ),
        *(
            (Objective(named(name)), f"terms returned a loss {name!r}, a name that is taken; taken")
            for name in ("gradient_norm", "kl_old", "kl_coefficient")
        ),
        *(
            (
                Objective(reinforce, controls={name: 1.0}),
                f"controls has {name!r}, a name that is taken; taken are entropy, gradient_norm, ",
            )
            for name in ("gradient_norm", "kl_old", "entropy")
        ),
        *(
            (
                Objective(named(name), frozenset({"behaviour"})),
                f"terms returned a loss {name!r}, a name that is taken; taken are effective_samp",
            )
            for name in ("weight", "squared_weight", "effective_samples")
        ),
        *(
            (Objective(reinforce, top=top), f"top is {top!r}; it must be a whole number, at least")
            for top in (-1, 2.0, True, "3")
        ),
        (
            Objective(reinforce, controls={"loss": 1.0}),
            "controls has 'loss', and terms returned a loss of that name; both would be the metric "
            "'policy/loss'",
        ),
        *(
            (
                controlled(adapt=lambda c, means, name=name: {"width": means[name]}),
                f'adapt raised KeyError: "{name!r} is no loss; there are policy/entropy, '
                'policy/gain, policy/kl, policy/kl_old, policy/loss"',
            )
            for name in ("policy/gian", "gain", "policy/width", "policy/gradient_norm")
        ),
        (controlled(observe=lambda c: 1.0), f"observe returned float; {KNOWN}"),
        (controlled(observe=lambda c: {"wide": 1.0}), f"observe returned 1.0 for 'wide'; {KNOWN}"),
        (
            controlled(observe=lambda c: {"width": "1"}),
            f"observe returned '1' for 'width'; {KNOWN}",
        ),
        (controlled(adapt=lambda c: c), "adapt raised TypeError"),
        (
            controlled(adapt=lambda c, means: {"width": means["policy/gain"]}),
            f"adapt, with means of NaN as no update was made, returned nan for 'width'; {KNOWN}",
        ),
    ],
)
def test_what_breaks_the_interface_is_one_line(objective, said):
    assert refused(f"m:O: {said}", check_objective, objective, "m:O", OTHERS)


def test_without_weights_their_names_are_free():
    for name in ("weight", "squared_weight", "effective_samples"):
        assert name in check_objective(Objective(named(name)), "m:O", OTHERS)


def test_the_reference_is_there_where_it_is_needed():
    def terms(live, batch, context, own):
        return {"distance": Loss(live.log_probs - batch.ref_log_probs)}

    check_objective(Objective(terms, frozenset({"reference"})), "m:O", OTHERS)
    assert refused(
        "m:O: terms raised", functools.partial(check_objective, Objective(terms)), "m:O", {}
    )
