"""The rollouts of a run: sampled when an iteration asks for one, or beside the updates before it.

With `train.behaviour_lag` the policy that samples for the next iteration is known before this
one's updates. Its responses are then sampled, verified and rewarded in a thread beside them: with
`mesh.rollout` on devices of their own, on a mesh of one device in turns with the updates, so that
the work of the host at least costs no time. Elsewhere the next prompts alone are encoded beside
the updates. The results are those of one after the other.
"""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import jax
import numpy as np

from dfpo_jax.plans import Draw, Drawn
from dfpo_jax.rollout.collect import Responses, draw, given, rewarded
from dfpo_jax.rollout.partial import take
from dfpo_jax.rollout.verify import score
from dfpo_jax.sharding import copied_to, to_host
from dfpo_jax.training.initial import states_of
from dfpo_jax.training.run import ROLLOUT, Run
from dfpo_jax.training.update import next_sampling_policy, sampling_policy
from dfpo_jax.types import ArrayTree, Rollout, TrainState, Unfinished


class Collected(NamedTuple):
    """What an iteration learns from.

    Attributes:
      drawn: its rows.
      metrics: of the plan, the verifier and the prompts.
      seconds: of sampling, verification and rewards.
      unfinished: responses that the next iteration goes on with, on the host; None without partial
        rollouts.
    """

    drawn: Drawn
    metrics: dict[str, float]
    seconds: float
    unfinished: Unfinished | None = None


def samples_beside_training(run: Run) -> bool:
    """Whether the next rollout is collected during an iteration's updates.

    Not where programs of two threads would meet in collectives: on a mesh of several devices that
    do both, and in several processes. Not where a reward reads the learner's states either.
    """
    apart = run.config.mesh.rollout > 0 or run.learner.mesh.size == 1
    reads = run.config.rewards.learned.samples > 0
    return run.config.train.behaviour_lag > 0 and apart and not reads and jax.process_count() == 1


class Rollouts:
    """The rollouts of a run's iterations, in order; a context manager.

    Args:
      run: with its rewards.
    """

    def __init__(self, run: Run):
        """Samples nothing yet."""
        self._run, self._beside = run, samples_beside_training(run)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._next: tuple[int, Future] | None = None  # of which iteration
        self._prompts: Future | None = None

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for a rollout that is being collected, which nobody will ask for."""
        self._thread.shutdown()

    def take(self, state: TrainState) -> Collected:
        """The rollout of the iteration that a state begins.

        Raises:
          As `rollout.collect.draw`, also for what happened in the thread.
        """
        step, begun = int(state.step), self._next
        self._next = None
        if self._prompts is not None:
            self._prompts.exception()  # waits; what is wrong is raised again below
        if begun is not None and begun[0] == step:
            return begun[1].result()
        policy, states = sampling_policy(state), states_of(self._run, state)
        return _collect(self._run, step, policy, states, to_host(state.unfinished))

    def begin(self, state: TrainState) -> None:
        """Begin with the rollout after that of a state, or with its prompts.

        The policy is copied first, since updates donate the state. What its own rollout has left
        unfinished must be in the state already, see `Learner.keep`.
        """
        step = int(state.step) + 1
        if step >= self._run.config.train.iterations:
            return
        if not self._beside:
            self._prompts = self._thread.submit(_encode_prompts, self._run, step)
        else:
            policy = copied_to(next_sampling_policy(state), self._run.sampler.mesh)
            arguments = (self._run, step, policy, None, to_host(state.unfinished))
            self._next = step, self._thread.submit(_collect, *arguments)

    def wait(self) -> None:
        """Wait until nothing is being collected, before others use the sampler's devices.

        Its errors are raised by `take`.
        """
        if self._next is not None:
            self._next[1].exception()


def _encode_prompts(run: Run, step: int) -> None:
    """Encode the prompts of an iteration, whose tokens the sampler remembers."""
    run.sampler.prompts(run.train_task.batch(step, run.config.train.prompts))


def _collect(
    run: Run,
    step: int,
    policy: ArrayTree,
    states: Callable[[Rollout], np.ndarray] | None,
    unfinished: Unfinished | None,
) -> Collected:
    """The rollout of an iteration.

    A run's first one pads prompts to `train.prompt_length`, whatever the buckets: programs that are
    too large for the devices are refused then, not hours later.
    """
    config, clock, tally = run.config.train, time.perf_counter(), Counter()
    sampler = run.sampler if step > 0 else dataclasses.replace(run.sampler, prompt_buckets=())
    key = jax.random.fold_in(jax.random.fold_in(run.key, ROLLOUT), step)

    def drawn(items, samples, round):
        options = {"num_samples": samples, "round": round, "tally": tally, "states": states}
        return draw(sampler, policy, run.train_task, run.rewards, items, key, step, **options)

    def prompts(count):
        return run.train_task.batch(step, count)

    if unfinished is None:
        source = Draw(drawn, functools.partial(given, sampler))
        collected, metrics = run.plan.collect(source, prompts, config.prompts, config.samples)
    else:
        taken = take(
            sampler,
            policy,
            run.train_task.batch,
            unfinished,
            key,
            step,
            tokens=run.config.partial.tokens,
            prompts=config.prompts,
            samples=config.samples,
            most_rounds=run.config.partial.rounds,
            tally=tally,
        )
        texts = sampler.texts(taken.responses)
        clean = score(run.train_task, taken.items, texts, tally)
        found = Responses(sampler.prompts(taken.items), taken.responses, texts, clean)
        inputs = (run.train_task, run.rewards, taken.items, found, step)
        collected = rewarded(*inputs, states=states)
        metrics, unfinished = taken.metrics, taken.unfinished
    metrics = metrics | {name: float(count) for name, count in tally.items()}
    return Collected(collected, metrics, time.perf_counter() - clock, unfinished)
