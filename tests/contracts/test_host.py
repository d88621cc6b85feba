"""`contracts.link` and `contracts.plan`: what they take, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from wrong_parts import Given, refused

from dfpo_jax import contracts
from dfpo_jax.plans import Plan, Plans
from dfpo_jax.rewards import Link
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.feature import Feature
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.rank import Rank
from dfpo_jax.rewards.squash import Squash


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0), None])
@pytest.mark.parametrize(
    "settings",
    [Clip(bound=0.5), Gaussian(std=0.1), Feature(0.3, "length"), Squash(0.3), Rank("group")],
    ids=lambda settings: type(settings).__name__,
)
def test_a_link_keeps_the_contract(settings, bounds):
    assert contracts.link(settings, bounds) is None


def test_a_link_that_breaks_it_is_refused():
    link = Link(lambda rewards, scored: rewards + np.float32(1.0), lambda bounds: bounds)
    said = "Given: apply made 1.5 of the reward 0.5; it must be within (0.0, 1.0)"
    assert refused(said, contracts.link, Given(link), error=AssertionError)
    said = "Clip: build returned NoneType; it must return a dfpo_jax.rewards.interface.Link"
    assert refused(said, contracts.link, Clip(), error=AssertionError)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One prompt too few where there are two responses to each."""

    def build(self, samples):
        def collect(draw, prompts, count, samples):
            return draw(prompts(count - (samples > 1)), samples, 0), {}

        return Plan(collect)


@pytest.mark.parametrize("name", Plans().parts)
def test_a_plan_keeps_the_contract(name):
    assert contracts.plan(Plans().parts[name]) is None


def test_a_plan_that_breaks_it_with_two_responses_is_refused():
    said = "Wrong: collect returned 6 texts; there must be 8"
    assert refused(said, contracts.plan, Wrong(), error=AssertionError)
