"""Sampling of iterations that wait for their longest responses, and of some that do not."""

import jax
import numpy as np
from _benchmark.language_model import smollm2
from _benchmark.timing import alternate

from dfpo_jax.rollout.partial import Partial, first_unfinished, take
from dfpo_jax.rollout.sampler import Sampler
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import character_tokenizer

PROMPTS, SAMPLES, PROMPT, LIMIT, MEAN = 8, 4, 32, 512, 32
PARTIAL = Partial(tokens=32, spare=4)
ITERATIONS = 4  # in a turn


def _prompts(step: int, size: int) -> list[Item]:
    digits = np.random.default_rng(step).integers(0, 10, (size, PROMPT))
    return [Item("".join(map(str, row)), "") for row in digits.tolist()]


def partial(repeats: int) -> dict:
    """Sampling for iterations of 32 responses, at most 512 tokens, with geometric lengths.

    SmolLM2-135M's sizes; one in 32 tokens of the random model ends a response. A turn is four
    iterations in a row, each with prompts of its own. Waiting for all
    responses, and with rounds of 32 tokens and four spare prompts; seconds per token that an
    iteration takes.
    """
    model, params = smollm2()
    ends = tuple(range(model.config.vocab_size // MEAN))
    tokenizer, config = character_tokenizer("0123456789"), SamplingConfig(LIMIT)
    sampler = Sampler(model, tokenizer, PROMPT, config, create_mesh(), eos_ids=ends)
    sizes = {"prompts": PROMPTS, "samples": SAMPLES}
    steps, tokens = {}, {"whole": [], "partial": []}
    unfinished = None

    def begin():
        nonlocal unfinished
        steps.update(whole=0, partial=0)
        unfinished = first_unfinished(PARTIAL, **sizes, limit=LIMIT, top=0)

    def iteration(name: str):
        nonlocal unfinished
        step = steps[name]
        key, steps[name] = jax.random.fold_in(jax.random.key(0), step), step + 1
        if name == "whole":
            prompts = sampler.prompts(_prompts(step, PROMPTS))
            return sampler(params, *prompts, key, num_samples=SAMPLES)
        source = (sampler, params, _prompts, unfinished, key, step)
        taken = take(*source, tokens=PARTIAL.tokens, **sizes)
        unfinished = taken.unfinished
        return taken.responses

    def turn(name: str):
        masks = [iteration(name).mask for _ in range(ITERATIONS)]
        tokens[name].append(float(sum(mask.sum() for mask in masks)))

    begin()
    for _ in range(repeats + 1):  # compiles for every shape that comes up
        turn("partial")
    begin()
    times = alternate({name: lambda name=name: turn(name) for name in steps}, repeats)
    lengths = {name: x[-repeats:] for name, x in tokens.items()}
    per_token = {name: times[name] * repeats / sum(lengths[name]) for name in steps}
    means = {
        f"mean_length_{name}": sum(x) / (repeats * ITERATIONS * PROMPTS * SAMPLES)
        for name, x in lengths.items()
    }
    return times | means | {"partial/whole": per_token["partial"] / per_token["whole"]}


BENCHMARKS = {"partial": partial}
