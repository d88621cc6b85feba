"""The one seam between device arrays and Python text: prompts in, responses out."""

import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from dfpo_jax.chat import Chat
from dfpo_jax.memory import Checked
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.prompts import fitted_ids, prompt_ids
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.rollout.stops import stop_table
from dfpo_jax.sharding import (
    batch_sharding,
    copied_to,
    lies_elsewhere,
    mesh_context,
    put_batch,
    put_replicated,
    to_host,
)
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import decode, decode_all, left_pad
from dfpo_jax.types import Array, ArrayTree, Generation


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
      stop: "" or a text that ends a response with the token that completes it, see `stopped`.
      prompt_buckets: smaller numbers of slots, for prompts that all fit one.
      begin: how a prompt without a chat template begins, see `tokenizers.beginning`.
      top: K, of how many of its most probable tokens a sampled response has log-probabilities.
      keep_states: whether a sampled response comes with the policy's hidden states.
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
    top: int = 0
    keep_states: bool = False

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
        ids = fitted_ids(
            self.tokenizer,
            self.chat,
            items,
            self.prompt_length,
            truncate=self.truncate_prompts,
            begin=self.begin,
            tally=tally,
        )
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
        wanted: np.ndarray | None = None,
        first: int = 0,
        least: int = 0,
    ) -> Generation:
        """Sample on the mesh; the result lies on the host.

        Rows that do not fill the mesh or the program are padded, get no responses and are cut off
        again. Parameters of another mesh are copied to this one.

        Args:
          params: the policy's.
          prompt_tokens, prompt_mask: [N, P].
          key: typed PRNG key.
          num_samples: responses per prompt.
          greedy: whether the most probable tokens are taken.
          wanted: [N] bool, the prompts that get responses; None for all.
          first: number of the first prompt among those that the key is for.
          least: number of prompts that the program has room for at least; programs with equally
            much room are one.

        Raises:
          MemoryError: the program does not fit the devices; nothing ran.
        """
        rows = len(prompt_tokens)
        if lies_elsewhere(params, self.mesh):
            params = copied_to(params, self.mesh)
        extra = self._room(max(rows, least)) - rows
        tokens, mask = (
            np.pad(x, ((0, extra), (0, 0)), mode="edge") for x in (prompt_tokens, prompt_mask)
        )
        wanted = np.pad(np.ones(rows, bool) if wanted is None else wanted, (0, extra))
        inputs = put_batch((tokens, mask, wanted), self.mesh)
        out = self._run(_checked_sample, params, inputs, key, num_samples, greedy, np.int32(first))
        out = jax.tree.map(lambda x: x[: rows * num_samples], to_host(out))
        return self.stopped(out)

    def ahead(
        self,
        params: ArrayTree,
        prompts: int,
        slots: int,
        key: Array,
        *,
        num_samples: int = 1,
        greedy: bool = False,
    ) -> None:
        """Compile what a call runs, before there are parameters.

        Args:
          params: abstract, with their shardings.
          prompts: N of the call, or `least` where that is more.
          slots: P of the call.
          key, num_samples, greedy: as in the call.
        """
        if lies_elsewhere(params, self.mesh):
            params = copied_to(params, self.mesh)
        rows, place = self._room(prompts), batch_sharding(self.mesh)
        inputs = tuple(
            jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)
            for shape, dtype in (((slots,), np.int32), ((slots,), np.float32), ((), np.bool_))
        )
        self._run(_checked_sample.ahead, params, inputs, key, num_samples, greedy, np.int32(0))

    def _room(self, prompts: int) -> int:
        """Rows of a program for so many prompts: those that the mesh divides."""
        multiple = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-prompts // multiple) * multiple

    def _run(
        self,
        sample: Callable[..., Any],
        params: ArrayTree,
        inputs: tuple[Array, Array, Array],
        key: Array,
        num_samples: int,
        greedy: bool,
        first: np.int32,
    ) -> Any:
        """Sampling with all its arguments; `inputs` are tokens, mask and the prompts wanted."""
        config = replace(self.config, parts=1)  # one program, whatever their number
        if greedy:
            config = replace(config, temperature=0.0)
        stops = None
        if self.stop:
            stops = stop_table(self.tokenizer, self.stop, self.model.config.vocab_size)
            stops = put_replicated(stops, self.mesh)
        with mesh_context(self.mesh):
            return sample(
                params,
                *inputs,
                key,
                stops,
                first,
                model=self.model,
                config=config,
                eos_ids=self.ends,
                pad_id=self.tokenizer.pad_token_id,
                num_samples=num_samples,
                top=0 if greedy else self.top,
                keep_states=self.keep_states and not greedy,
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        return self.eos_ids or (self.tokenizer.eos_token_id,)

    def stopped(self, generation: Generation) -> Generation:
        """Responses cut behind the token that completes the stop text, if any; those have ended.

        This pass decides where a response ends. The automaton on the device, `stops.stop_table`, is
        an early exit, which saves decoding: it reads the text of one token at a time, and may miss
        a stop text of which several tokens make one character.
        """
        if not self.stop:
            return generation
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
        return generation.replace(
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
        rows = []
        for row, length in zip(tokens, mask.sum(axis=1).astype(int), strict=True):
            ended = length > 0 and row[length - 1] in self.ends
            rows.append(row[: length - ended])
        texts = decode_all(self.tokenizer, rows)
        return [text.split(self.stop)[0] for text in texts] if self.stop else texts


_STATIC = ("model", "config", "eos_ids", "pad_id", "num_samples", "top", "keep_states")


def _sample(params, tokens, mask, wanted, key, stops, first, *, model, **options) -> Generation:
    options |= {"stops": stops, "wanted": wanted, "first": first}
    return generate(model, params, tokens, mask, key, **options)


_checked_sample = Checked(
    "sampling",
    jax.jit(_sample, static_argnames=_STATIC),
    "set sampling.slots and sampling.prefill_rows (0 is all at once) or lower them, or lower "
    "sampling.max_new_tokens, train.prompts or evaluation.prompts",
)
