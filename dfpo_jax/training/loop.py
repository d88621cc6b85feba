"""The training loop: warm up, iterate, evaluate, checkpoint, report."""

import dataclasses
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfpo_jax import ops
from dfpo_jax.rollout.collect import collect
from dfpo_jax.sharding import put_replicated
from dfpo_jax.training import distributed, failures
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.evaluate import critic_metrics, greedy_accuracy, observed_returns
from dfpo_jax.training.json_lines import JsonLines, read_json
from dfpo_jax.training.metrics import MetricsWriter, Progress, peak_memory_bytes, read_metrics
from dfpo_jax.training.preemption import Preempted, StopSignals
from dfpo_jax.training.report import CriticSnapshot, Example, write_report
from dfpo_jax.training.run import CRITIC, EVALUATE, INIT, ROLLOUT, Run, first_policy
from dfpo_jax.training.run_data import digests
from dfpo_jax.training.workdir import BEFORE, write_json
from dfpo_jax.types import Rollout, TrainState

_LOG = logging.getLogger(__name__)
_UNIT_MOMENTUM = 0.05


def update_value_units(
    state: TrainState,
    rewards: np.ndarray,
    reward_range: tuple[float, float] | None,
    least_scale: float = 1e-3,
) -> TrainState:
    """Set the value units z = (G - mu) / sigma for an iteration (algorithm section 1).

    With a declared range: its midpoint and half its width. Without: the median and half the
    10-90 % spread of the rewards seen, taken over at the first iteration and slowly averaged
    afterwards. Where nearly all rewards are equal that spread is next to nothing and the few others
    would be huge in its units: `least_scale` bounds it.

    Args:
      state: whose units change.
      rewards: [B] sequence rewards of this iteration.
      reward_range: (low, high) or None.
      least_scale: the smallest sigma without a range.
    """
    if reward_range is not None:
        low, high = reward_range
        shift, scale = (low + high) / 2, (high - low) / 2
    else:
        low, shift, high = np.quantile(rewards, [0.1, 0.5, 0.9])
        scale = max((high - low) / 2, least_scale)
        if int(state.step) > 0:
            shift = (1 - _UNIT_MOMENTUM) * float(state.value_shift) + _UNIT_MOMENTUM * shift
            scale = (1 - _UNIT_MOMENTUM) * float(state.value_scale) + _UNIT_MOMENTUM * scale
    mesh = state.value_shift.sharding.mesh
    return state.replace(
        value_shift=put_replicated(np.float32(shift), mesh),
        value_scale=put_replicated(np.float32(scale), mesh),
    )


def iteration(
    run: Run, state: TrainState
) -> tuple[TrainState, dict[str, float], list[dict[str, Any]]]:
    """One rollout and its updates: the new state, the iteration's metrics, and some responses.

    A run's first iteration pads prompts to `train.prompt_length`, whatever the buckets: programs
    that are too large for the devices are refused then, not hours later.
    """
    config, step, clock = run.config, int(state.step), time.perf_counter()
    sampler = run.sampler if step > 0 else dataclasses.replace(run.sampler, prompt_buckets=())
    items = run.train_task.batch(step, config.train.prompts)
    key = jax.random.fold_in(jax.random.fold_in(run.key, ROLLOUT), step)
    tally = Counter()
    rollout, texts = collect(
        sampler,
        state.params["policy"],
        run.train_task,
        config.noise,
        items,
        key,
        step,
        num_samples=config.train.samples,
        tally=tally,
        penalty=config.length_penalty,
    )
    sampled = time.perf_counter()
    state = update_value_units(state, rollout.rewards, run.reward_range, run.least_scale)
    state, metrics = run.learner.update(state, *run.learner.prepare(state, rollout))
    policy = config.policy
    if policy.kl_target > 0.0 and np.isfinite(metrics["policy/kl"]):  # no update, no KL
        coefficient = ops.adaptive_kl_update(
            float(state.kl_coefficient),
            metrics["policy/kl"],
            target=policy.kl_target,
            horizon=policy.kl_horizon,
            num_tokens_or_steps=1,
        )
        state = state.replace(
            kl_coefficient=put_replicated(coefficient, state.kl_coefficient.sharding.mesh)
        )
    metrics |= rollout_metrics(rollout, run.train_task.solved_at)
    metrics |= {name: float(count) for name, count in tally.items()}
    metrics["policy/kl_coefficient"] = float(state.kl_coefficient)
    metrics["time/sample_seconds"] = sampled - clock
    metrics["time/iteration_seconds"] = time.perf_counter() - clock
    return state, metrics, _samples(rollout, texts, items, config.log.samples)


def _samples(rollout: Rollout, texts, items, count: int) -> list[dict[str, Any]]:
    """The first responses of a rollout, as samples.jsonl has them."""
    return [
        {
            "prompt": items[int(rollout.groups[row])].prompt,
            "response": texts[row],
            "answer": items[int(rollout.groups[row])].answer,
            "reward": float(rollout.rewards[row]),
            "clean_reward": float(rollout.clean_rewards[row]),
            "tokens": int(rollout.mask[row].sum()),
            "truncated": bool(rollout.truncated[row]),
        }
        for row in range(min(count, len(texts)))
    ]


def rollout_metrics(rollout: Rollout, solved_at: float) -> dict[str, float]:
    """Rewards (noisy and clean), accuracy and lengths of a rollout, and its prompts' padding."""
    return {
        "rollout/reward": float(rollout.rewards.mean()),
        "rollout/reward_std": float(rollout.rewards.std()),
        "rollout/clean_reward": float(rollout.clean_rewards.mean()),
        "rollout/accuracy": float((rollout.clean_rewards >= solved_at).mean()),
        "rollout/length": float(rollout.mask.sum(axis=1).mean()),
        "rollout/prompt_slots": float(rollout.prompt_tokens.shape[1]),
        "rollout/truncated": float(np.asarray(rollout.truncated).mean()),
    }


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
    """The critic against noisy returns of held-out rollouts; always the same prompts and noise."""
    config = run.config.evaluation
    if config.critic_prompts == 0 or not run.learner.has_critic:
        return {}, None
    held_out = run.evaluations["in_domain"]
    items = held_out.items[: config.critic_prompts]
    rollout, _ = collect(
        run.sampler,
        state.params["policy"],
        held_out.task,
        run.config.noise,
        items,
        jax.random.fold_in(run.key, CRITIC),
        2**30,
        num_samples=config.critic_samples,
        penalty=run.config.length_penalty,
    )
    quantiles = run.learner.predict(state, rollout)
    policy = run.config.policy
    metrics = critic_metrics(quantiles, rollout, config.critic_samples, policy)
    trajectories = run.learner.trajectories(state, rollout)
    rows = slice(None, None, config.critic_samples)
    snapshot = CriticSnapshot(
        prompts=[item.prompt for item in items],
        quantiles=quantiles[rows, 0],
        observed=observed_returns(rollout, policy)[0][:, 0].reshape(-1, config.critic_samples),
        trajectories=None if trajectories is None else trajectories[:, rows],
    )
    return {f"eval/critic/{name}": value for name, value in metrics.items()}, snapshot


class _Silent:
    """Stands in for all that writes, in processes that do not log."""

    def write(self, *args) -> None:
        """Nothing."""

    append = update = close = write


def _begin(run: Run, checkpoints: Checkpointer, workdir: Path) -> tuple[TrainState, MetricsWriter]:
    """The state to go on from, and metrics.jsonl cut to it (row 0 comes before checkpoint 0)."""
    if checkpoints.listed():
        newest = checkpoints.newest()
        state = checkpoints.restore(run.learner.abstract_state, newest)
        if run.config.policy.kl_target == 0.0:  # else it is the controller's
            fixed = np.float32(run.config.policy.kl_coefficient)
            state = state.replace(kl_coefficient=put_replicated(fixed, run.learner.mesh))
        _LOG.info("continuing from iteration %d", newest)
        return state, _writer(run, workdir, newest)
    state = run.learner.start(jax.random.fold_in(run.key, INIT), first_policy(run))
    metrics, details = evaluate(run, state)
    before = {"metrics": metrics, "details": details, "prompts": digests(run)}
    write_json(workdir / BEFORE, before)
    writer = _writer(run, workdir, -1)
    writer.write(0, metrics | {"time/elapsed_seconds": time.perf_counter() - run.started})
    checkpoints.save(state, metrics["eval/in_domain/accuracy"])
    return state, writer


def _writer(run: Run, workdir: Path, resume_step: int) -> "MetricsWriter | _Silent":
    if not distributed.is_main():
        return _Silent()
    log = run.config.log
    return MetricsWriter(
        workdir,
        tensorboard=log.tensorboard,
        wandb_project=log.wandb_project,
        wandb_config=dataclasses.asdict(run.config),
        resume_step=resume_step,
    )


def train(run: Run, workdir: str | Path) -> dict[str, Any]:
    """Run from the warm start, or from the newest intact checkpoint in `workdir`, to the report.

    What is raised in one of several processes ends the others too, see `failures`.

    Args:
      run: from `build_run`.
      workdir: opened by `open_workdir`; metrics.jsonl, samples.jsonl, tensorboard, checkpoints,
        results.json and report.html go there.

    Returns:
      The content of results.json: clean accuracies in [0, 1] before and after, seconds, peak
      memory in bytes, configuration and seed.

    Raises:
      FileNotFoundError: there are checkpoints, but none is intact.
      FloatingPointError: too many updates in a row were not finite; the newest checkpoint is the
        last good state.
      MemoryError: sampling or the train step does not fit the devices; nothing of it has run.
      OSError: a checkpoint could not be written.
      VerifierFailure: the verifier failed on more than `verifier.most_failures` of an iteration.
      Preempted: SIGTERM or SIGINT; the state after the last iteration is saved.
    """
    with failures.shared():
        state, seconds, stopped = _iterate(run, Path(workdir))
        if not stopped:
            return _finish(run, state, Path(workdir), seconds)
    iterations = run.config.train.iterations
    raise Preempted(f"stopped after iteration {int(state.step)} of {iterations}; state saved")


def _iterate(run: Run, workdir: Path) -> tuple[TrainState, float, bool]:
    """The last state, the seconds that earlier parts of the run took, whether a signal stopped it.

    Raises:
      As `train`.
    """
    config = run.config
    checkpoints = Checkpointer(workdir, config.checkpoint.keep)
    state, writer = _begin(run, checkpoints, workdir)
    start, iterations = int(state.step), config.train.iterations
    before, progress, samples, stopped = 0.0, _Silent(), _Silent(), False
    if distributed.is_main():
        progress = Progress(iterations, start)
        samples = JsonLines(workdir / "samples.jsonl", start)
        if start > 0:
            before = read_metrics(workdir)[-1]["time/elapsed_seconds"]
    try:
        with failures.shared(), StopSignals() as signals:
            for step in range(start + 1, iterations + 1):
                state, metrics, responses = iteration(run, state)
                for response in responses:
                    samples.append({"step": step, **response})
                failure = None
                if step == iterations or _due(step, config.evaluation.every):
                    try:
                        metrics |= evaluate(run, state)[0] | evaluate_critic(run, state)[0]
                    except Exception as error:
                        if jax.process_count() > 1:  # the others wait for it in there
                            raise
                        failure = error  # raised again once the iteration is saved
                metrics["time/elapsed_seconds"] = before + time.perf_counter() - run.started
                writer.write(step, metrics)
                progress.update(step, metrics)
                stopped = step < iterations and signals.requested()
                ends = stopped or step == iterations or failure is not None
                if ends or _due(step, config.checkpoint.every):
                    checkpoints.save(state, metrics.get("eval/in_domain/accuracy"))
                if failure is not None:
                    raise failure
                if stopped:
                    break
    finally:
        progress.close()
        samples.close()
        writer.close()
        checkpoints.close()
    return state, before, stopped


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finish(run: Run, state: TrainState, workdir: Path, seconds: float) -> dict[str, Any]:
    """Compare before and after on clean held-out data; write results.json and report.html."""
    distributed.barrier("before.json is written")
    before = read_json(workdir / BEFORE)
    after, details = evaluate(run, state)
    _, snapshot = evaluate_critic(run, state)
    results = {
        name: {
            "before": before["metrics"][f"eval/{name}/accuracy"],
            "after": after[f"eval/{name}/accuracy"],
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
            for item, a, b in zip(items, old, details["in_domain"], strict=True)
        ]
    if not distributed.is_main():
        return results
    write_report(
        workdir / "report.html",
        title=f"{run.config.algorithm} on {run.train_task.name}",
        results=results,
        rows=read_metrics(workdir),
        examples=examples[:12],
        snapshot=snapshot,
    )
    return results
