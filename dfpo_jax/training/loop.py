"""The training loop: iterate, evaluate, checkpoint, report."""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dfpo_jax.plans import Drawn
from dfpo_jax.published_files import read_json
from dfpo_jax.rollout.collect import draw
from dfpo_jax.training import distributed, failures
from dfpo_jax.training.ahead import compile_beside
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.evaluate import critic_metrics, greedy_accuracy, observed_returns
from dfpo_jax.training.glossary import described
from dfpo_jax.training.initial import states_of, with_rewards
from dfpo_jax.training.metrics import peak_memory_bytes, read_metrics
from dfpo_jax.training.noise_metrics import noise_metrics
from dfpo_jax.training.preemption import Preempted, StopSignals
from dfpo_jax.training.profile import tracing
from dfpo_jax.training.report import CriticSnapshot, Example, write_report
from dfpo_jax.training.rollout_metrics import rollout_metrics
from dfpo_jax.training.rollouts import Rollouts
from dfpo_jax.training.run import CRITIC, EVALUATE, INIT, Run
from dfpo_jax.training.run_data import digests
from dfpo_jax.training.run_log import RunLog
from dfpo_jax.training.speed import speed_metrics
from dfpo_jax.training.step_size import SQUARED, effective_samples
from dfpo_jax.training.value_model import with_value_model
from dfpo_jax.training.warm_start import first_policy
from dfpo_jax.training.workdir import BEFORE, write_json
from dfpo_jax.types import TrainState

_LOG = logging.getLogger(__name__)


def iteration(
    run: Run, state: TrainState, rollouts: Rollouts
) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """One rollout and its updates: the new state, the iteration's metrics, and some responses."""
    config, step, clock = run.config, int(state.step), time.perf_counter()
    collected, metrics, seconds, unfinished = rollouts.take(state)
    rollout, taken = collected.rollout, time.perf_counter()
    state = run.learner.keep(state, unfinished)
    rollouts.begin(state)
    state = run.learner.observe(state, run.observed(rollout.rewards, step))
    prepared = jax.block_until_ready(run.learner.prepare(state, rollout))
    ready = time.perf_counter()
    state, means = run.learner.update(state, *prepared)
    updated = time.perf_counter()
    state = run.learner.adapt(state, means)
    metrics = metrics | means | rollout_metrics(rollout, run.train_task.solved_at)
    metrics |= _noise(run, collected)
    if SQUARED in means:
        metrics["policy/effective_samples"] = float(effective_samples(means))
    metrics |= {f"policy/{name}": float(state.controls[name]) for name in run.learner.controls}
    metrics |= speed_metrics(
        rollout,
        config.model,
        state.params,
        config.train.epochs,
        devices=run.learner.mesh.size,
        waited=taken - clock,
        sampled=seconds,
        prepared=ready - taken,
        updated=updated - ready,
    )
    metrics["time/iteration_seconds"] = time.perf_counter() - clock
    return state, metrics, _samples(collected, config.log.samples)


def _samples(drawn: Drawn, count: int) -> list[dict[str, Any]]:
    """The first responses of a rollout, as samples.jsonl has them."""
    rollout = drawn.rollout
    items = [drawn.items[int(group)] for group in rollout.groups[:count]]
    return [
        {
            "prompt": item.prompt,
            "response": drawn.texts[row],
            "answer": item.answer,
            "reward": float(rollout.rewards[row]),
            "clean_reward": float(rollout.clean_rewards[row]),
            "tokens": int(rollout.mask[row].sum()),
            "truncated": bool(rollout.truncated[row]),
        }
        for row, item in enumerate(items)
    ]


def _noise(run: Run, drawn: Drawn) -> dict[str, float]:
    """Errors in the rewards of a rollout, where a link acts on verdicts with a range.

    Ranks accept nothing, as a response is above or below the others. Nor do logits, whose midpoint
    has nothing to do with that of the verifier's rewards.
    """
    clean, links = run.train_task.reward_range, run.config.rewards
    graded = links.rank.within or links.learned.score == "logit" or run.plan.range is not None
    if not run.rewards.words or graded or clean is None or clean[0] == clean[1]:
        return {}
    middles = [sum(bounds) / 2 for bounds in (clean, run.clean_range)]
    return noise_metrics(drawn, *middles, run.train_task.answer)


class _Evaluation(NamedTuple):
    """Metrics of a state on held-out items, responses by evaluation set, and the critic's laws."""

    metrics: dict[str, float]
    details: dict[str, list]
    snapshot: CriticSnapshot | None


def evaluate(run: Run, state: TrainState) -> tuple[dict[str, float], dict[str, list]]:
    """Greedy accuracy on every evaluation set; also the responses and which are correct."""
    metrics, details = {}, {}
    for name, held_out in run.evaluations.items():
        key = jax.random.fold_in(run.key, EVALUATE)
        accuracy, texts, correct = greedy_accuracy(
            held_out.sampler, state.params["policy"], held_out.task, held_out.items, key
        )
        metrics[f"eval/{name}/accuracy"] = accuracy
        details[name] = [{"text": t, "correct": c} for t, c in zip(texts, correct, strict=True)]
    return metrics, details


def evaluate_critic(run: Run, state: TrainState) -> tuple[dict[str, float], CriticSnapshot | None]:
    """The critic against noisy returns of held-out rollouts; always the same prompts and noise.

    Nothing without `Run.critic_items`.
    """
    config, items = run.config.evaluation, run.critic_items
    if not items:
        return {}, None
    rollout = draw(
        run.sampler,
        state.params["policy"],
        run.evaluations["in_domain"].task,
        run.rewards,
        items,
        jax.random.fold_in(run.key, CRITIC),
        2**30,
        num_samples=config.critic_samples,
        states=states_of(run, state),
        shape=run.sampled_at_once,
    ).rollout
    quantiles, returns = run.learner.predict(state, rollout), run.config.returns
    metrics = critic_metrics(quantiles, rollout, config.critic_samples, returns)
    trajectories = run.learner.trajectories(state, rollout)
    rows = slice(None, None, config.critic_samples)
    snapshot = CriticSnapshot(
        prompts=[item.prompt for item in items],
        quantiles=quantiles[rows, 0],
        observed=observed_returns(rollout, returns)[0][:, 0].reshape(-1, config.critic_samples),
        trajectories=None if trajectories is None else trajectories[:, rows],
    )
    return {f"eval/critic/{name}": value for name, value in metrics.items()}, snapshot


def _begin(run: Run, checkpoints: Checkpointer, workdir: Path) -> tuple[Run, TrainState, RunLog]:
    """The run with its rewards, the state to go on from, and the log cut to it.

    Row 0 of the log comes before checkpoint 0, and what the rewards need before both.
    """
    if checkpoints.listed():
        newest = checkpoints.newest()
        if newest < run.config.train.iterations:
            compile_beside(run)
        state = checkpoints.restore(run.learner.abstract_state, newest)
        _LOG.info("continuing from iteration %d", newest)
        run = with_rewards(run, state, workdir, resumed=True)
        return run, state, RunLog(run, workdir, newest)
    compile_beside(run)
    state = run.learner.start(jax.random.fold_in(run.key, INIT), first_policy(run))
    state = with_value_model(run.config.critic.source, run.learner, state)
    run = with_rewards(run, state, workdir, resumed=False)
    metrics, details = evaluate(run, state)
    before = {"metrics": metrics, "details": details, "prompts": digests(run)}
    write_json(workdir / BEFORE, before)
    log = RunLog(run, workdir, -1)
    log.write(0, metrics | {"time/elapsed_seconds": time.perf_counter() - run.started})
    checkpoints.save(state, metrics["eval/in_domain/accuracy"])
    return run, state, log


def train(run: Run, workdir: str | Path, profile: int = 0) -> dict[str, Any]:
    """Run from the warm start, or from the newest intact checkpoint in `workdir`, to the report.

    What is raised in one of several processes ends the others too, see `failures`.

    Args:
      run: from `build_run`.
      workdir: opened by `open_workdir`; metrics.jsonl, samples.jsonl, tensorboard, checkpoints,
        results.json and report.html go there.
      profile: iterations to trace, see `profile.tracing`.

    Returns:
      The content of results.json: clean accuracies in [0, 1] before and after, seconds, peak
      memory in bytes, configuration and seed.

    Raises:
      FileNotFoundError: there are checkpoints, but none is intact.
      FloatingPointError: too many updates in a row were not finite; the newest checkpoint is the
        last good state.
      MemoryError: sampling or the train step does not fit the devices; nothing of it has run.
      OSError: a checkpoint could not be written.
      ValueError: what the reward chain made of the first policy is missing or damaged, or it cannot
        be made.
      VerifierFailure: the verifier failed on more than `verifier.most_failures` of an iteration.
      Preempted: SIGTERM or SIGINT; the state after the last iteration is saved.
    """
    with failures.shared():
        run, state, seconds, stopped, found = _iterate(run, Path(workdir), profile)
        if not stopped:
            return _finish(run, found or _evaluation(run, state), Path(workdir), seconds)
    iterations = run.config.train.iterations
    raise Preempted(f"stopped after iteration {int(state.step)} of {iterations}; state saved")


def _iterate(
    run: Run, workdir: Path, profile: int
) -> tuple[Run, TrainState, float, bool, _Evaluation | None]:
    """The run with its rewards, the last state, seconds of earlier parts, whether it was stopped.

    Also the evaluation of that state, unless there was nothing left to train.

    Raises:
      As `train`.
    """
    config = run.config
    iterations = config.train.iterations
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpointer(workdir, config.checkpoint.keep))
        )
        run, state, log = _begin(run, checkpoints, workdir)
        stack.callback(log.close)
        start, before, found = int(state.step), 0.0, None
        if start > 0 and distributed.is_main():
            before = read_metrics(workdir)[-1]["time/elapsed_seconds"]
        stack.enter_context(failures.shared())
        signals = stack.enter_context(StopSignals())
        begin = stack.enter_context(tracing(workdir, profile))
        rollouts = stack.enter_context(Rollouts(run))
        for step in range(start + 1, iterations + 1):
            begin()
            state, metrics, responses = iteration(run, state, rollouts)
            failure = None
            if step == iterations or _due(step, config.evaluation.every):
                rollouts.wait()
                found, failure = _evaluated(run, state)
                metrics |= found.metrics if found else {}
            metrics["time/elapsed_seconds"] = before + time.perf_counter() - run.started
            log.write(step, metrics, responses)
            stopped = step < iterations and signals.requested()
            ends = stopped or step == iterations or failure is not None
            if ends or _due(step, config.checkpoint.every):
                checkpoints.save(state, metrics.get("eval/in_domain/accuracy"))
            if failure is not None:
                raise failure
            if stopped:
                return run, state, before, True, None
    return run, state, before, False, found


def _evaluation(run: Run, state: TrainState) -> _Evaluation:
    metrics, details = evaluate(run, state)
    of_critic, snapshot = evaluate_critic(run, state)
    return _Evaluation(metrics | of_critic, details, snapshot)


def _evaluated(run: Run, state: TrainState) -> tuple[_Evaluation | None, Exception | None]:
    """An evaluation, or its failure, to raise once the state is saved."""
    try:
        return _evaluation(run, state), None
    except Exception as error:
        if jax.process_count() > 1:  # the others wait for this process in the evaluation
            raise
        return None, error


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finish(run: Run, found: _Evaluation, workdir: Path, seconds: float) -> dict[str, Any]:
    """Compare before and after on clean held-out data; write results.json and report.html."""
    distributed.barrier("before.json is written")
    before = read_json(workdir / BEFORE)
    results = {
        name: {
            "before": before["metrics"][f"eval/{name}/accuracy"],
            "after": found.metrics[f"eval/{name}/accuracy"],
        }
        for name in run.evaluations
    }
    results |= {
        "seconds": seconds + time.perf_counter() - run.started,
        "peak_memory_bytes": peak_memory_bytes(),
        "config": dataclasses.asdict(run.config),
        "seed": run.config.seed,
    }
    write_json(workdir / "results.json", results)
    examples = []  # of prompts that were accepted though they are others, none can be compared
    if before.get("prompts", {}).get("in_domain") in (None, digests(run)["in_domain"]):
        items, old = run.evaluations["in_domain"].items, before["details"]["in_domain"]
        examples = [
            Example(item.prompt, item.answer, a["text"], b["text"], a["correct"], b["correct"])
            for item, a, b in zip(items, old, found.details["in_domain"], strict=True)
        ]
    if not distributed.is_main():
        return results
    write_report(
        workdir / "report.html",
        title=f"{run.config.algorithm} on {run.train_task.name}",
        results=results,
        rewards=run.rewards.words,
        rows=read_metrics(workdir),
        described=described(run.config),
        examples=examples[:12],
        snapshot=found.snapshot,
    )
    return results
