"""Token ids of prompts, raw or rendered by a chat template, shortened if they are too long."""

import functools
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dfpo_jax.chat import Chat
from dfpo_jax.metric import Metric
from dfpo_jax.tasks.base import Item
from dfpo_jax.tokenizers import beginning, encode_all

_KEPT = 8192  # prompts of a tokenizer whose tokens are remembered


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, chat: Chat | None, item: Item, begin: str = "auto"
) -> list[int]:
    """Token ids of an item's prompt: at least one, since the first state belongs to a token.

    Args:
      tokenizer: encodes the prompt.
      chat: renders the conversation; None to encode the raw prompt.
      item: the item.
      begin: how a prompt without a chat template begins, see `tokenizers.beginning`.

    Raises:
      ValueError: the prompt cannot be encoded or rendered.
    """
    return all_prompt_ids(tokenizer, chat, [item], begin)[0]


def all_prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat | None,
    items: Sequence[Item],
    begin: str = "auto",
) -> list[list[int]]:
    """`prompt_ids` of every item; tokens are remembered, so that others may encode them before."""
    if chat is not None:
        return [chat.encode(item.conversation) for item in items]
    start, bos = beginning(tokenizer, begin), tokenizer.bos_token_id
    empty = [tokenizer.pad_token_id if bos is None else bos]
    rows = _encoded(tokenizer, [item.prompt for item in items])
    return [[*start, *ids] or empty for ids in rows]


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode_all`, of new texts alone; threads may call it at once."""
    known = _remembered(tokenizer)
    rows = {text: known.get(text) for text in texts}
    new = [text for text, ids in rows.items() if ids is None]
    found = dict(zip(new, encode_all(tokenizer, new), strict=True))
    if len(known) + len(found) > _KEPT:
        known.clear()
    known.update(found)
    return [found[text] if rows[text] is None else rows[text] for text in texts]


@functools.lru_cache(maxsize=8)
def _remembered(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    return {}


def shortened_ids(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat | None,
    item: Item,
    ids: list[int],
    limit: int,
    begin: str = "auto",
) -> list[int]:
    """Shortens a prompt with more than `limit` `prompt_ids` to at most `limit` token ids.

    A raw prompt keeps the tokens that every text begins with, and then its last tokens. A
    conversation keeps the template's frame, see `Chat.encode`.

    Raises:
      ValueError: the frame alone has more tokens.
    """
    if chat is not None:
        return chat.encode(item.conversation, limit)
    start = beginning(tokenizer, begin)[:limit]
    return [*start, *ids[len(ids) - limit + len(start) :]]


def check_length(item: Item, ids: Sequence[int], length: int) -> None:
    """Raise ValueError if a prompt has more than `length` tokens."""
    if len(ids) > length:
        raise ValueError(f"prompt {item.prompt!r} has {len(ids)} tokens; prompt_length is {length}")


METRICS = (
    Metric(
        "rollout/shortened_prompts",
        "How many of the prompts drawn in the iteration had more than `train.prompt_length` tokens "
        "and were cut.",
        healthy="0, or few.",
        advice="Raise `train.prompt_length`, or leave such prompts out with `task.overlong=skip`.",
        when="with `task.overlong=truncate`",
    ),
)


def fitted_ids(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat | None,
    items: Sequence[Item],
    length: int,
    *,
    truncate: bool,
    begin: str = "auto",
    tally: Counter | None = None,
) -> list[list[int]]:
    """Token ids of prompts of 1 to `length` tokens. Raises ValueError if that is impossible.

    Args:
      tokenizer: encodes.
      chat: renders prompts, if given.
      items: prompts.
      length: most tokens.
      truncate: whether a prompt that is too long is cut, see `shortened_ids`.
      begin: how a prompt without a chat template begins.
      tally: "rollout/shortened_prompts" is added to it.
    """
    rows = []
    for item, ids in zip(items, all_prompt_ids(tokenizer, chat, items, begin), strict=True):
        if truncate and len(ids) > length:
            ids = shortened_ids(tokenizer, chat, item, ids, length, begin)
            if tally is not None:
                tally["rollout/shortened_prompts"] += 1
        check_length(item, ids, length)
        rows.append(ids)
    return rows
