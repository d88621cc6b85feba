"""Responses that somebody wrote, such as the task's own answers, as a rollout."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from dfpo_jax.chat import Chat
from dfpo_jax.rollout.prompts import fitted_ids
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import encode_all, left_pad, right_pad
from dfpo_jax.types import Rollout


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
    texts: Sequence[str] | None = None,
) -> Rollout:
    """The task's own answers, or other texts, as a rollout: a row for each, then eos.

    Args:
      tokenizer: encodes.
      items: prompts and answers.
      prompt_length: prompt slots.
      response_length: response slots.
      chat: renders prompts, if given.
      eos_id: ends an answer; the tokenizer's own by default.
      truncate_prompts: whether a prompt that is too long is cut, see `prompts.shortened_ids`.
      begin: how a prompt without a chat template begins.
      texts: responses, one for each item; its answer by default.

    Raises:
      ValueError: a prompt or an answer (with its eos) does not fit; lengths are named.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id if eos_id is None else eos_id
    ids = fitted_ids(tokenizer, chat, items, prompt_length, truncate=truncate_prompts, begin=begin)
    prompts, prompt_mask = left_pad(ids, prompt_length, pad)
    texts = [item.answer for item in items] if texts is None else texts
    answers = [[*ids, eos] for ids in encode_all(tokenizer, texts)]
    for text, row in zip(texts, answers, strict=True):
        if len(row) > response_length:
            raise ValueError(
                f"answer {text!r} has {len(row)} tokens with its end of sequence; "
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
