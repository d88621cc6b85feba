"""Chat templates: messages to prompt tokens, as `transformers` renders them."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

_SENTINELS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters of Unicode


@dataclass(frozen=True)
class ChatConfig:
    """Whether and how prompts become conversations.

    Attributes:
      enabled: render prompts by the tokenizer's chat template.
      system: "" or the system message put first where a conversation has none.
      thinking: given to the template as `enable_thinking`; templates that do not know it ignore it.
      check_prefix: refuse a template under which a prompt is not how the prompt and its answer
        begin, since supervised and sampled responses would then follow different prompts.
    """

    enabled: bool = False
    system: str = ""
    thinking: bool = False
    check_prefix: bool = True


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template with its settings.

    Attributes:
      tokenizer: has a chat template.
      config: settings.

    Raises:
      ValueError: the tokenizer has no chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    config: ChatConfig

    def __post_init__(self):
        """Check that there is a template."""
        if not self.tokenizer.chat_template:
            raise ValueError("chat.enabled is True; the tokenizer has no chat template")

    def render(self, messages: Messages, answer: str | None = None) -> str:
        """The prompt as text up to where the assistant writes; with `answer`, the whole turn.

        Raises:
          ValueError: the template refuses the messages.
        """
        messages = [dict(message) for message in messages]
        if self.config.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.config.system})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=answer is None,
                tokenize=False,
                enable_thinking=self.config.thinking,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses {messages!r}: {error}") from error

    def encode(self, messages: Messages) -> list[int]:
        """Token ids of the rendered prompt.

        The template's special tokens become their ids. A message that spells one is hidden while
        the template renders, and encoded as text.
        """
        used = [name for name in self._special if any(name in m["content"] for m in messages)]
        if not used:
            return self.tokenizer.encode(self.render(messages), add_special_tokens=False)
        everything = "".join(message["content"] for message in messages)
        sentinel = next(mark for mark in _SENTINELS if mark not in everything)
        hidden = {name: f"{sentinel}{index}{sentinel}" for index, name in enumerate(used)}
        masked = [{**m, "content": _replace(m["content"], hidden)} for m in messages]
        ids = []
        for piece in self._split(self.render(masked)):
            if piece in self._special:
                ids.append(self._special[piece])
            elif piece:
                text = _replace(piece, {mark: name for name, mark in hidden.items()})
                ids += self.tokenizer.encode(
                    text, add_special_tokens=False, split_special_tokens=True
                )
        return ids

    def check(self, messages: Messages, answer: str) -> None:
        """Raise unless the rendered prompt is how prompt and answer together begin.

        Raises:
          ValueError: it is not, and `check_prefix` is set; shows where they part.
        """
        if not self.config.check_prefix:
            return
        prompt, whole = self.render(messages), self.render(messages, answer)
        if not whole.startswith(prompt):
            same = next(
                (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
                min(len(prompt), len(whole)),
            )
            raise ValueError(
                "the chat template renders a prompt that is not how prompt and answer begin: "
                f"{prompt[same:]!r} against {whole[same : same + 40]!r}. Change chat.thinking, or "
                "set chat.check_prefix to False"
            )

    def turn_end(self) -> int | None:
        """The special token right after an answer, None where the template writes none."""
        answer = "dfpo"
        whole = self.render([{"role": "user", "content": "?"}], answer)
        rest = whole[whole.rindex(answer) + len(answer) :].lstrip()
        names = sorted(self._special, key=len, reverse=True)
        return next((self._special[name] for name in names if rest.startswith(name)), None)

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        names = dict.fromkeys(self.tokenizer.all_special_tokens)
        return {name: self.tokenizer.convert_tokens_to_ids(name) for name in names}

    def _split(self, text: str) -> list[str]:
        """The text in pieces: special tokens and what lies between."""
        pieces = [text]
        for name in sorted(self._special, key=len, reverse=True):
            split = []
            for piece in pieces:
                if piece in self._special:
                    split.append(piece)
                    continue
                first, *rest = piece.split(name)
                split.append(first)
                for part in rest:
                    split += [name, part]
            pieces = split
        return pieces


def _replace(text: str, table: Mapping[str, str]) -> str:
    for old in sorted(table, key=len, reverse=True):
        text = text.replace(old, table[old])
    return text
