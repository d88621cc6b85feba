"""The glossary of metrics: what is written is described, what is described is written."""

import ast
import dataclasses
import functools
import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plan_draws import draw, given, prompts
from tiny import Markov, markov_params, ragged_rollout

from dfpo_jax import ops, trial
from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.critics import Critics
from dfpo_jax.metric import Metric, metrics_of
from dfpo_jax.objectives import Flowrl, Objectives, check_objective
from dfpo_jax.plans import Draw, Plans
from dfpo_jax.rollout.prompts import fitted_ids
from dfpo_jax.settings import Choice
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import character_tokenizer
from dfpo_jax.training.config import Config, parse_config
from dfpo_jax.training.config_keys import setting_paths
from dfpo_jax.training.glossary import described, document, explanation, sections
from dfpo_jax.training.update import Schedule, init_state, update

ALL = [metric for section in sections() for metric in section.metrics]
CHOICES = [x for x in vars(Config()).values() if isinstance(x, Choice)]
NEEDED = {"num_heads": 2, "coefficient": 0.1, "leave_out": 0.1}  # to switch on every loss


def names_of(part):
    return {metric.name for metric in metrics_of(part)}


def switched_on(part):
    """A part with every loss that it may have."""
    fields = {item.name for item in dataclasses.fields(part)}
    weights = {name: 0.1 for name in fields if name.endswith("weight")}
    return dataclasses.replace(part, **weights, **{x: NEEDED[x] for x in NEEDED.keys() & fields})


def test_every_description_says_what_the_metric_means_and_no_part_has_two_of_a_name():
    assert all(metric.name and metric.meaning.endswith(".") for metric in ALL)
    for title, found in sections():
        assert max(Counter(metric.name for metric in found).values()) == 1, title


def test_the_document_has_each_description_once_and_names_it_wherever_it_belongs():
    text = document()
    for metric in set(ALL):
        assert f"\n\n{metric.meaning}\n\n" in text, metric.name
    assert text.count("**`critic/cvar`**") == 1
    assert (
        "As under Critic `quantile`: `critic/cvar`, `critic/upper_gain`, `critic/mean_shift`"
        in text
    )
    assert "## Critic `robust`\n\nAs under Critic `ensemble`: `critic/loss`.\n" in text
    assert "\n\n\n" not in text and text.endswith("\n") and not text.endswith("\n\n")


# --- what is written is what is described ---------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, part in Critics().parts.items() if part.build()])
def test_a_critic_describes_its_losses(name):
    part = Critics().parts[name]
    critic = switched_on(part).build()

    def losses(key, states, steps, keys):
        params = nn.unbox(critic.init(key, trial.SIZES["D"]))
        rows = critic.targets(key, critic.read(params, states), steps, 0.9)
        found = critic.losses(params, states, rows, params, keys)
        return {f"critic/{name}": loss.per_token for name, loss in found.items()}

    states = trial.shape(*(trial.SIZES[x] + (x == "R") for x in "BRD"))
    keys = trial.keys(trial.SIZES["B"])
    assert set(jax.eval_shape(losses, trial.keys(), states, trial.steps(), keys)) == names_of(part)


@pytest.mark.parametrize("name", Objectives().parts | Objectives().added)
def test_an_objective_describes_its_losses_and_controls(name):
    part = (Objectives().parts | Objectives().added)[name]
    own, found = name if name in Objectives().added else "objective", set()
    for settings in (part, switched_on(part)):
        objective = settings.build()
        losses = check_objective(objective, name, {}, own) - {"kl_old"}
        found |= {f"policy/{x}" for x in (*losses, *objective.controls)}
    assert found == names_of(part)


@pytest.mark.parametrize("name", Plans().parts)
def test_a_plan_describes_its_metrics(name):
    _, metrics = Plans(name=name).build(2).collect(Draw(draw, given), prompts, 3, 2)
    assert set(metrics) == names_of(Plans().parts[name])


def test_what_every_update_writes_is_described():
    """Of an algorithm with importance weights, a network of the objective, and a warm-up."""
    config = AlgorithmConfig(
        Critics("scalar", warmup=3, warmup_patience=1),
        objective=Objectives("flowrl", flowrl=Flowrl(importance="tis_clip")),
    )
    algorithm = compose(Markov(), config, 1.0)
    optimizers = {name: optax.sgd(0.1) for name in algorithm.networks}

    def run(policy, rollout, key):
        state = nn.unbox(init_state(algorithm, optimizers, policy, key))
        inputs = algorithm.prepare(state, rollout, key)
        options = {"optimizers": optimizers, "schedule": Schedule()}
        return update(state, *inputs, algorithm=algorithm, **options)[1]

    inputs = markov_params(), ragged_rollout(), jax.random.key(0)
    written = set(jax.eval_shape(run, *inputs)) | {f"policy/{x}" for x in algorithm.controls}
    written -= {"policy/value_shift", "policy/value_scale"}
    parts = names_of(Critics().scalar) | names_of(Objectives().flowrl)
    parts |= {"policy/entropy", "policy/kl_coefficient"}
    assert parts < written
    titles = ("Updates", "What the critic explains, and its warm-up")
    of_loop = {metric.name for title, found in sections() for metric in found if title in titles}
    # The loop makes these of the means, and of what the learner counts; a run tests that it does.
    assert written - parts == of_loop - {"policy/effective_samples", "train/skipped_updates"}


def test_shortened_prompts_are_counted_under_the_described_name():
    tally = Counter()
    item = Item("123", "6", {}, 0)
    fitted_ids(character_tokenizer("123"), None, [item], 2, truncate=True, tally=tally)
    assert set(tally) == {"rollout/shortened_prompts"} and set(tally) <= {x.name for x in ALL}


# --- what descriptions name is there --------------------------------------------------------------


def words(metric):
    """What stands between backticks: names of settings and metrics, and formulas."""
    text = " ".join((metric.meaning, metric.healthy, metric.advice, metric.when, metric.formula))
    assert text.count("`") % 2 == 0, metric.name
    return text.split("`")[1::2]


def test_descriptions_name_settings_and_values_that_there_are():
    paths, found = {*setting_paths(Config())}, set()
    for word in (word for metric in ALL for word in words(metric)):
        path, _, value = word.partition("=")
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", path) or word.endswith(".py"):
            continue
        assert path in paths, word
        if value:
            found.add(word)
            section, _, field = path.rpartition(".")
            holder = functools.reduce(getattr, section.split("."), Config())
            typed = ast.literal_eval(value) if value in ("True", "False") else value
            dataclasses.replace(holder, **{field: typed})  # refuses a value that there is not
    assert "critic.units=asinh" in found and "log_probs.recompute=False" in found


def test_descriptions_name_metrics_that_there_are():
    known = {metric.name for metric in ALL}
    named = {
        word for metric in ALL for word in words(metric) if re.fullmatch(r"[\w]+(/\w+)+", word)
    }
    assert "noise/top_wrong_rate" in named and named <= known


def test_figures_that_descriptions_give():
    by_name = {metric.name: metric for metric in ALL}
    histogram = Critics().categorical
    edges = np.linspace(-histogram.support, histogram.support, histogram.num_bins + 1)
    sigma = float(histogram.smoothing * (edges[1] - edges[0]))
    rng, shape = np.random.default_rng(0), (1, 1, 200_000)

    def best(z, t, d):  # of a return N(0, 1): cov(y - eps, z_t) = 2 t - 1
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * z

    @jax.jit
    def figures(logs, samples, noise, times, centre, edges):
        mass = ops.gaussian_histogram(centre, edges, sigma=sigma)
        entropy = -jnp.sum(jax.scipy.special.xlogy(mass, mass))
        loss = ops.anchor_loss(best, samples, noise, times)
        return ops.kl_estimate(logs, 0 * logs)[0], loss[0, 0], entropy

    arrays = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(size=shape)
    logs = np.log([[1.2, 0.8]])
    found = figures(*jax.tree.map(np.float32, (logs, *arrays, np.zeros((1, 1)), edges)))
    high, low = (f"{value:.3f}".lstrip("0") for value in found[0])
    assert f"{high} (ratio 1.2) to {low} (ratio .8)" in by_name["policy/kl_old"].healthy
    np.testing.assert_allclose(found[1], np.pi / 2, atol=0.02)
    assert "pi / 2 where it is N(0, 1)" in by_name["critic/anchor"].healthy
    (loss,) = metrics_of(histogram)
    assert f"{np.log(histogram.num_bins):.1f} for the default of 101 bins" in loss.healthy
    assert f"about {found[2]:.1f} for a return that is certain" in loss.healthy


# --- of one run, and parts of the user's own ------------------------------------------------------


def test_a_run_has_the_descriptions_of_its_own_parts():
    found = described(parse_config({"algorithm": "ppo"}))
    assert found["critic/loss"] in metrics_of(Critics().scalar)
    assert "critic/anchor" not in found and "rollout/reward" in found and "policy/kl" in found


def test_a_part_of_the_users_own_may_describe_its_metrics_and_need_not():
    found = described(
        parse_config(
            {"objective": {"name": "toy_parts:Guess"}, "plan": {"name": "toy_parts:Better"}}
        )
    )
    assert found["policy/guess"].meaning == "Mean squared error of the guesses."
    assert "policy/clip_fraction" not in found and "plan/replaced" not in found


@pytest.mark.parametrize("other", [None, 3, "loss", ("loss", 1), property(lambda part: 1 / 0)])
def test_something_else_under_the_name_is_no_description(other):
    class Part:
        metrics = other

    assert metrics_of(Part()) == ()


def test_a_description_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="healthy of a metric is 0.2; it must be a text"):
        Metric("policy/guess", "Mean squared error.", healthy=0.2)


def test_one_metric_is_explained_once_for_each_part_that_writes_another():
    text = explanation("critic/loss")
    assert text.count("critic/loss (") == len({x for x in ALL if x.name == "critic/loss"}) == 5
    assert "critic/loss (Critic `ensemble`, Critic `robust`)\nHalf the squared error" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    with pytest.raises(ValueError, match="metric 'critic/losses'; the nearest are critic/loss, "):
        explanation("critic/losses")
