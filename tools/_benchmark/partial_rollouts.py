"""Sampling of iterations that wait for their longest responses, and of some that do not."""

from dataclasses import replace
from typing import NamedTuple

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

PROMPT, ITERATIONS = 32, 3  # tokens of a prompt, iterations in a turn
PACKED_ROWS = 4  # that are read at once


class Sizes(NamedTuple):
    """Of an iteration: prompts, responses to each, most tokens of a response, their mean."""

    prompts: int
    samples: int
    limit: int
    mean: int
    partial: Partial


SIZES = Sizes(4, 4, 512, 32, Partial(tokens=32, spare=4))
SIZES_OF_GPUS = Sizes(16, 8, 1024, 64, Partial(tokens=64, spare=8))


def _prompts(step: int, size: int) -> list[Item]:
    digits = np.random.default_rng(step).integers(0, 10, (size, PROMPT))
    return [Item("".join(map(str, row)), "") for row in digits.tolist()]


def partial(repeats: int) -> dict:
    """Sampling for iterations of 16 responses, at most 512 tokens; of 128 and 1,024 on a GPU.

    SmolLM2-135M's sizes. Lengths are geometric with a mean of a sixteenth of the limit. A turn is
    three iterations in a row, each with prompts of its own. Waiting for all responses, and with
    rounds of so many tokens and as many spare prompts (half as many on a GPU) as an iteration has,
    which read prompts and responses so far in a row each, or packed; seconds per token that
    iterations take.
    """
    model, params = smollm2()
    sizes = SIZES_OF_GPUS if jax.default_backend() == "gpu" else SIZES
    ends = tuple(range(model.config.vocab_size // sizes.mean))
    tokenizer, padded = character_tokenizer("0123456789"), SamplingConfig(sizes.limit)
    packed = replace(padded, prefill_rows=PACKED_ROWS, pack_prompts=True)
    samplers = {
        name: Sampler(model, tokenizer, PROMPT, config, create_mesh(), eos_ids=ends)
        for name, config in (("whole", padded), ("partial", padded), ("packed", packed))
    }
    counts = {"prompts": sizes.prompts, "samples": sizes.samples}
    steps, tokens, unfinished = {}, {name: [] for name in samplers}, {}

    def begin():
        for name in samplers:
            steps[name] = 0
            unfinished[name] = first_unfinished(sizes.partial, **counts, limit=sizes.limit, top=0)

    def iteration(name: str):
        step, sampler = steps[name], samplers[name]
        key, steps[name] = jax.random.fold_in(jax.random.key(0), step), step + 1
        if name == "whole":
            prompts = sampler.prompts(_prompts(step, sizes.prompts))
            return sampler(params, *prompts, key, num_samples=sizes.samples)
        source = (sampler, params, _prompts, unfinished[name], key, step)
        taken = take(*source, tokens=sizes.partial.tokens, **counts)
        unfinished[name] = taken.unfinished
        return taken.responses

    def turn(name: str):
        masks = [iteration(name).mask for _ in range(ITERATIONS)]
        tokens[name].append(float(sum(mask.sum() for mask in masks)))

    begin()
    for _ in range(repeats + 1):  # compiles for every shape that comes up
        turn("partial")
        turn("packed")
    begin()
    times = alternate({name: lambda name=name: turn(name) for name in steps}, repeats)
    lengths = {name: x[-repeats:] for name, x in tokens.items()}
    per_token = {name: times[name] * repeats / sum(lengths[name]) for name in steps}
    means = {
        f"mean_length_{name}": sum(x) / (repeats * ITERATIONS * sizes.prompts * sizes.samples)
        for name, x in lengths.items()
    }
    ratios = {f"{name}/whole": per_token[name] / per_token["whole"] for name in per_token}
    return times | means | {name: x for name, x in ratios.items() if name != "whole/whole"}


BENCHMARKS = {"partial": partial}
