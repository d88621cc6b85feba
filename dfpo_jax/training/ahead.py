"""The programs of a run's first iteration compile beside its start.

Weights are read, or made by a warm start, while a thread compiles what runs next. A program that
was compiled for other shapes than the run has in the end is of no use, and does no harm.
"""

import logging
from threading import Thread

import jax

from dfpo_jax.training.programs import Programs
from dfpo_jax.training.run import EVALUATE, ROLLOUT, Run

_LOG = logging.getLogger(__name__)


def compile_beside(run: Run) -> Thread:
    """Begin to compile sampling, preparation and train step; the thread is running.

    Calls of a program that is being compiled wait for it. What goes wrong is in the log of level
    debug alone, as the first call of the program raises it again.
    """
    thread = Thread(target=_compile, args=(run,), name="compiler")
    thread.start()
    return thread


def _compile(run: Run) -> None:
    try:
        _sampling(run)
        _learning(run)
    except Exception as error:
        _LOG.debug("not compiled ahead of time: %s", error)


def _sampling(run: Run) -> None:
    """Greedy evaluations, which come first, and a rollout."""
    policy = run.learner.abstract_state.params["policy"]
    for held_out in run.evaluations.values():
        sampler, key = held_out.sampler, jax.random.fold_in(run.key, EVALUATE)
        prompts = sampler.config.part_of(len(held_out.items))
        sampler.ahead(policy, prompts, sampler.prompt_length, key, greedy=True)
    if run.config.partial.tokens == 0:
        prompts, samples = run.sampled_at_once
        key = jax.random.fold_in(jax.random.fold_in(run.key, ROLLOUT), 0)
        slots = run.sampler.prompt_length
        run.sampler.ahead(policy, prompts, slots, key, num_samples=samples)


def _learning(run: Run) -> None:
    """Preparation, train step and, where there is a critic, what its evaluation asks of it."""
    train, samples = run.config.train, run.config.evaluation.critic_samples
    programs, held_out = Programs(run.config, run.learner), None
    if run.critic_items:
        slots = run.sampler.prompts(run.critic_items)[0].shape[1]
        held_out = programs.drawn(len(run.critic_items), samples, slots)
    run.learner.ahead(programs.rollout(train.prompts * train.samples), held_out)
