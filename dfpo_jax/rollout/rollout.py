"""The one seam between device arrays and Python text: prompts in, scored rollouts out."""

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from dfpo_jax.chat import Chat
from dfpo_jax.memory import Checked
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.prompts import check_length, prompt_ids, shortened_ids
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.rollout.stops import stop_table
from dfpo_jax.sharding import (
    gather_rows,
    mesh_context,
    own_rows,
    put_batch,
    put_replicated,
    to_host,
)
from dfpo_jax.tasks.base import Item, Task, VerifierFailure
from dfpo_jax.tasks.noise import RewardNoise
from dfpo_jax.tokenizers import decode, encode, left_pad, right_pad
from dfpo_jax.types import Array, ArrayTree, Generation, Rollout


@dataclass(frozen=True)
class Sampler:
    """A policy with its tokenizer, jitted once per (shape, sampling configuration).

    Attributes:
      model: the policy.
      tokenizer: a `transformers` tokenizer with pad and eos tokens.
      prompt_length: most slots P that prompts are padded to.
      config: sampling distribution and length limit.
      mesh: device mesh the rows are spread over.
      eos_ids: tokens that end a response; () for the tokenizer's own.
      chat: renders prompts; None for prompts as they are.
      truncate_prompts: whether a prompt that is too long is cut, see `prompts.prompt_ids`.
      stop: "" or a text that ends a response with the token that completes it.
      prompt_buckets: smaller numbers of slots, for prompts that all fit one.
      begin: how a prompt without a chat template begins, see `tokenizers.beginning`.
    """

    model: Transformer
    tokenizer: PreTrainedTokenizerBase
    prompt_length: int
    config: SamplingConfig
    mesh: jax.sharding.Mesh
    eos_ids: tuple[int, ...] = ()
    chat: Chat | None = None
    truncate_prompts: bool = False
    stop: str = ""
    prompt_buckets: tuple[int, ...] = ()
    begin: str = "auto"

    def encode(self, item: Item) -> list[int]:
        """Token ids of an item's prompt."""
        return prompt_ids(self.tokenizer, self.chat, item, self.begin)

    def prompts(
        self, items: Sequence[Item], tally: Counter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode and left-pad prompts: tokens [N, P] int32 and mask [N, P] float32.

        P is the smallest of `prompt_buckets` and `prompt_length` that holds the longest of them.

        Args:
          items: prompts.
          tally: where prompts are truncated, "rollout/shortened_prompts" is added to it.

        Raises:
          ValueError: a prompt longer than `prompt_length`, named with both lengths.
        """
        if tally is not None and self.truncate_prompts:
            tally["rollout/shortened_prompts"] += 0  # the metric is there without any
        encoder, limit = (self.tokenizer, self.chat, self.begin), self.prompt_length
        ids = _fitted(*encoder, items, limit, self.truncate_prompts, tally)
        longest = max(map(len, ids), default=0)
        slots = min(n for n in (*self.prompt_buckets, self.prompt_length) if n >= longest)
        return left_pad(ids, slots, self.tokenizer.pad_token_id)

    def __call__(
        self,
        params: ArrayTree,
        prompt_tokens: np.ndarray,
        prompt_mask: np.ndarray,
        key: Array,
        *,
        num_samples: int = 1,
        greedy: bool = False,
    ) -> Generation:
        """Sample on the mesh; the result lies on the host.

        Rows that do not fill the mesh are padded and cut off again.

        Raises:
          MemoryError: the program does not fit the devices; nothing ran.
        """
        config = replace(self.config, temperature=0.0) if greedy else self.config
        rows = len(prompt_tokens)
        multiple = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        extra = -rows % multiple
        tokens, mask = (
            np.pad(x, ((0, extra), (0, 0)), mode="edge") for x in (prompt_tokens, prompt_mask)
        )
        tokens, mask = put_batch((tokens, mask), self.mesh)
        stops = None
        if self.stop:
            stops = stop_table(self.tokenizer, self.stop, self.model.config.vocab_size)
            stops = put_replicated(stops, self.mesh)
        with mesh_context(self.mesh):
            out = _checked_sample(
                params,
                tokens,
                mask,
                key,
                stops,
                model=self.model,
                config=config,
                eos_ids=self._ends,
                pad_id=self.tokenizer.pad_token_id,
                num_samples=num_samples,
            )
        out = jax.tree.map(lambda x: x[: rows * num_samples], to_host(out))
        return self._stopped(out) if self.stop else out

    @property
    def _ends(self) -> tuple[int, ...]:
        return self.eos_ids or (self.tokenizer.eos_token_id,)

    def _stopped(self, generation: Generation) -> Generation:
        """Responses cut behind the token that completes the stop text; those have ended."""
        mask, truncated = np.array(generation.mask), np.array(generation.truncated)
        for row, tokens in enumerate(np.asarray(generation.tokens)):
            length = int(mask[row].sum())
            if self.stop not in decode(self.tokenizer, tokens[:length]):
                continue
            first = bisect.bisect_left(
                range(length + 1),
                True,
                key=lambda n: self.stop in decode(self.tokenizer, tokens[:n]),
            )
            mask[row, first:], truncated[row] = 0.0, False
        return Generation(
            tokens=np.where(mask > 0, generation.tokens, self.tokenizer.pad_token_id),
            mask=mask,
            log_probs=np.asarray(generation.log_probs) * mask,
            truncated=truncated,
        )

    def texts(self, generation: Generation) -> list[str]:
        """Responses as text, without what ended them: an end-of-sequence token or the stop text.

        Other special tokens stay visible, and U+FFFD stands for an id without a token, so that no
        verifier takes "1<bos>2" for "12".
        """
        tokens, mask = np.asarray(generation.tokens), np.asarray(generation.mask)
        texts = []
        for row, length in zip(tokens, mask.sum(axis=1).astype(int), strict=True):
            ended = length > 0 and row[length - 1] in self._ends
            text = decode(self.tokenizer, row[: length - ended])
            texts.append(text.split(self.stop)[0] if self.stop else text)
        return texts


def _fitted(
    tokenizer, chat, begin, items, length: int, truncate: bool, tally=None
) -> list[list[int]]:
    """Token ids of prompts of 1 to `length` tokens; ValueError where that is not to be."""
    rows = []
    for item in items:
        ids = prompt_ids(tokenizer, chat, item, begin)
        if truncate and len(ids) > length:
            ids = shortened_ids(tokenizer, chat, item, ids, length, begin)
            if tally is not None:
                tally["rollout/shortened_prompts"] += 1
        check_length(item, ids, length)
        rows.append(ids)
    return rows


def _sample(params, prompt_tokens, prompt_mask, key, stops, *, model, **options) -> Generation:
    return generate(model, params, prompt_tokens, prompt_mask, key, stops=stops, **options)


_checked_sample = Checked(
    "sampling",
    jax.jit(_sample, static_argnames=("model", "config", "eos_ids", "pad_id", "num_samples")),
    "set sampling.slots and sampling.prefill_rows (0 is all at once) or lower them, or lower "
    "sampling.max_new_tokens, train.prompts or evaluation.prompts",
)


def score(
    task: Task, items: Sequence[Item], texts: Sequence[str], tally: Counter | None = None
) -> np.ndarray:
    """Verifier rewards [len(texts)] float32; `texts` holds equally many responses per item.

    Every process verifies its share of the responses and gets all rewards.

    Args:
      task: judges.
      items: prompts.
      texts: responses, those to one prompt consecutive.
      tally: "verifier/errors" and "verifier/timeouts" of all processes are added to it.

    Raises:
      ValueError: the verifier gave a reward that is not finite or outside the task's declared
        range; the item is named. Every process raises it, so that none waits for another.
      VerifierFailure: with a tally, where the verifier failed on more than `task.most_failures` of
        the responses, on every process too.
    """
    low, high = task.reward_range or (-np.inf, np.inf)
    per_item, own = len(texts) // len(items), own_rows(len(texts))
    own_items = [items[row // per_item] for row in range(own.start, own.stop)]
    verdicts = task.judge(own_items, texts[own])
    rewards = gather_rows(np.array([v.reward for v in verdicts], np.float32), len(texts))
    sound = np.isfinite(rewards) & (low <= rewards) & (rewards <= high)
    if not sound.all():
        row = int(np.argmin(sound))
        allowed = "finite numbers"
        if task.reward_range is not None:
            allowed = f"between {low} and {high}, the task's range"
        prompt = items[row // per_item].prompt
        raise ValueError(
            f"task {task.name!r} gave reward {rewards[row]} for prompt {prompt!r} and response "
            f"{texts[row]!r}; rewards must be {allowed}"
        )
    if tally is not None:
        statuses = ("ok", "error", "timeout")
        codes = np.array([statuses.index(v.status) for v in verdicts], np.int32)
        codes = gather_rows(codes, len(texts))
        tally["verifier/errors"] += int((codes == 1).sum())
        tally["verifier/timeouts"] += int((codes == 2).sum())
        failed = int((codes > 0).sum())
        if failed > task.most_failures * len(texts):
            first = next((v.why for v in verdicts if v.status != "ok"), "seen on another host")
            raise VerifierFailure(
                f"the verifier of {task.name} failed on {failed} of {len(texts)} responses, more "
                f"than verifier.most_failures={task.most_failures} allows; the first: {first}"
            )
    return rewards


@dataclass(frozen=True)
class LengthPenalty:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13).

    A response of L tokens with the limit R = max_new_tokens and buffer C gets, added to its reward
    after the noise, scale * min(0, (R - C - L) / C): 0 up to R - C tokens, -scale at the limit.

    Attributes:
      buffer: C in tokens; 0 for no penalty.
      scale: in units of reward, >= 0.

    Raises:
      ValueError: a value below 0.
    """

    buffer: int = 0
    scale: float = 1.0

    def __post_init__(self):
        """Check ranges."""
        if self.buffer < 0 or not 0.0 <= self.scale < float("inf"):
            raise ValueError(f"buffer is {self.buffer} and scale {self.scale}; both must be >= 0")

    def __call__(self, lengths: np.ndarray, limit: int) -> np.ndarray:
        """Penalties [B] float32 of responses of `lengths` [B] tokens."""
        if self.buffer == 0:
            return np.zeros(len(lengths), np.float32)
        excess = np.asarray(lengths, np.float32) - (limit - self.buffer)
        return -self.scale * np.clip(excess / self.buffer, 0.0, 1.0)

    @property
    def lowest(self) -> float:
        """The smallest value it takes."""
        return -self.scale if self.buffer else 0.0


_NO_PENALTY = LengthPenalty()


def collect(
    sampler: Sampler,
    params: ArrayTree,
    task: Task,
    noise: RewardNoise,
    items: Sequence[Item],
    key: Array,
    step: int,
    *,
    num_samples: int,
    tally: Counter | None = None,
    penalty: LengthPenalty = _NO_PENALTY,
) -> tuple[Rollout, list[str]]:
    """Sample `num_samples` responses per item, score them, corrupt the scores.

    Args:
      sampler: policy and tokenizer.
      params: policy parameters.
      task: gives the clean reward.
      noise: corrupts it; the clean one is kept beside it for metrics.
      items: N prompts.
      key: PRNG key of this iteration.
      step: iteration number, seeds the noise.
      num_samples: responses per item.
      tally: verifier failures and shortened prompts are added to it, under their metrics' names.
      penalty: added to the noisy reward of long responses.

    Returns:
      A host-side `Rollout` with N * num_samples rows, and the response texts.
    """
    prompt_tokens, prompt_mask = sampler.prompts(items, tally)
    generation = sampler(params, prompt_tokens, prompt_mask, key, num_samples=num_samples)
    texts = sampler.texts(generation)
    clean = score(task, items, texts, tally)
    low, high = task.reward_range if task.reward_range is not None else (0.0, 1.0)
    lengths = np.asarray(generation.mask).sum(axis=1)
    limit = generation.mask.shape[1]
    noisy = noise.apply(clean, step, low, high) + penalty(lengths, limit)
    rollout = Rollout(
        prompt_tokens=np.repeat(prompt_tokens, num_samples, axis=0),
        prompt_mask=np.repeat(prompt_mask, num_samples, axis=0),
        tokens=generation.tokens,
        mask=generation.mask,
        log_probs=generation.log_probs,
        truncated=generation.truncated,
        rewards=noisy,
        clean_rewards=clean,
        groups=np.repeat(np.arange(len(items), dtype=np.int32), num_samples),
    )
    return rollout, texts


def demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    prompt_length: int,
    response_length: int,
    chat: Chat | None = None,
    eos_id: int | None = None,
    truncate_prompts: bool = False,
    begin: str = "auto",
) -> Rollout:
    """The task's own answers as a rollout, for supervised warm starts: answer, then eos.

    Args:
      tokenizer: encodes.
      items: prompts and answers.
      prompt_length: prompt slots.
      response_length: response slots.
      chat: renders prompts, if given.
      eos_id: ends an answer; the tokenizer's own by default.
      truncate_prompts: whether a prompt that is too long is cut, see `prompts.prompt_ids`.
      begin: how a prompt without a chat template begins.

    Raises:
      ValueError: a prompt or an answer (with its eos) does not fit; lengths are named.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id if eos_id is None else eos_id
    ids = _fitted(tokenizer, chat, begin, items, prompt_length, truncate_prompts)
    prompts, prompt_mask = left_pad(ids, prompt_length, pad)
    answers = [[*encode(tokenizer, i.answer), eos] for i in items]
    for item, row in zip(items, answers, strict=True):
        if len(row) > response_length:
            raise ValueError(
                f"answer {item.answer!r} has {len(row)} tokens with its end of sequence; "
                f"max_new_tokens is {response_length}"
            )
    tokens, mask = right_pad(answers, response_length, pad)
    ones = np.ones(len(items), np.float32)
    return Rollout(
        prompt_tokens=prompts,
        prompt_mask=prompt_mask,
        tokens=tokens,
        mask=mask,
        log_probs=np.zeros_like(mask),
        truncated=np.zeros(len(items), bool),
        rewards=ones,
        clean_rewards=ones,
        groups=np.arange(len(items), dtype=np.int32),
    )
