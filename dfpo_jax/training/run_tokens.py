"""Tokens of a run: its tokenizer, the chat template of a task, and what ends a response."""

from transformers import PreTrainedTokenizerBase

from dfpo_jax.chat import Chat
from dfpo_jax.models import pretrained
from dfpo_jax.tokenizers import character_tokenizer, pretrained_tokenizer
from dfpo_jax.training.config import Config, TaskConfig


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of a run.

    Raises:
      ValueError: there is no such tokenizer, or it has more tokens than the model.
    """
    section = config.tokenizer
    if section.name == "character":
        tokenizer = character_tokenizer(section.alphabet, pad_is_eos=section.pad_is_eos)
    elif section.name == "weights":
        if not config.weights.source:
            raise ValueError("config.tokenizer.name is 'weights'; weights.source is empty")
        tokenizer = pretrained_tokenizer(config.weights.source)
    else:
        tokenizer = pretrained_tokenizer(section.name)
    # Ids may have gaps, so that there are more of them than tokens.
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if size > config.model.vocab_size:
        raise ValueError(
            f"config.model.vocab_size is {config.model.vocab_size}; the tokenizer has {size} tokens"
        )
    return tokenizer


def chat_of(section: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> Chat | None:
    """What renders the prompts of a task.

    Raises:
      ValueError: the tokenizer has no template, or one that does not fit the verifier.
    """
    if not section.chat.enabled:
        return None
    chat = Chat(tokenizer, section.chat)
    chat.check_mark(section.verifier.after)
    return chat


def ending_ids(config: Config, tokenizer, chat: Chat | None) -> tuple[int, ...]:
    """What ends a response: the template's end of a turn first, the tokenizer's, the model's."""
    ends = [chat and chat.turn_end(), tokenizer.eos_token_id]
    if config.weights.source:
        more = pretrained.generation_config(config.weights.source).eos_token_id
        ends += more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys(end for end in ends if end is not None))
