"""Chat templates: turns messages into prompt tokens, as `transformers` renders them."""

import bisect
import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from dfpo_jax.control_tokens import MARKS, ControlTokens, Piece
from dfpo_jax.template_dates import dated

Messages = Sequence[Mapping[str, str]]

_KEPT = 8192  # conversations whose tokens are remembered
_QUESTION, _ANSWER = "dfpo asks", "dfpo answers"  # sample texts to inspect a template with


@dataclass(frozen=True)
class ChatConfig:
    """Whether and how to render prompts as conversations.

    Attributes:
      enabled: whether to render prompts with the tokenizer's chat template.
      system: "" or a system message for conversations that have none.
      thinking: passed to the template as `enable_thinking`; templates without it ignore it.
      check_prefix: whether to refuse a template if the rendered prompt is not a prefix of the
        rendered prompt and answer. Supervised and sampled responses would follow different prompts.
      date: the day, YYYY-MM-DD, that a template writes as today's date, so that prompts do not
        change every day. The default is the date that Llama 3.1's template falls back to.

    Raises:
      ValueError: `date` is not such a day.
    """

    enabled: bool = False
    system: str = ""
    thinking: bool = False
    check_prefix: bool = True
    date: str = "2024-07-26"

    def __post_init__(self):
        """Check the date."""
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date is {self.date!r}; it must be a day, YYYY-MM-DD") from None


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
        """The prompt as text up to the assistant's turn; with `answer`, the turn too.

        Raises:
          ValueError: the template refuses the messages, drops a system or user message, or has no
            generation prompt.
        """
        if answer is None and self._fault:
            raise ValueError(self._fault)
        messages = self._with_system(messages)
        turns = [] if answer is None else [{"role": "assistant", "content": answer}]
        rendered = self._apply([*messages, *turns], answer is None)
        _check_kept(messages, rendered)
        return rendered

    def encode(self, messages: Messages, limit: int | None = None) -> list[int]:
        """Token ids of the rendered prompt; they are remembered, as rendering takes long.

        The template's control tokens become their ids. A control token that a message spells stays
        text, see `control_tokens`.

        Args:
          messages: the conversation.
          limit: None, or the most tokens. To fit, the longest user message loses as much of its
            beginning as necessary, then the next longest one; the frame stays whole.

        Raises:
          ValueError: as `render`; or the frame alone has more than `limit` tokens.
        """
        ids = list(self._remembered(tuple(tuple(message.items()) for message in messages)))
        if limit is None or len(ids) <= limit:
            return ids
        messages = [dict(message) for message in messages]
        users = [message for message in messages if message["role"] == "user"]
        for message in sorted(users, key=lambda m: len(m["content"]), reverse=True):
            text = message["content"]

            def shortened(cut: int, message=message, text=text) -> list[int]:
                message["content"] = text[cut:]
                return self._encode(messages)

            cuts = range(len(text))
            first = bisect.bisect_left(cuts, True, key=lambda cut: len(shortened(cut)) <= limit)
            ids = shortened(first)
            if len(ids) <= limit:
                return ids
        raise ValueError(
            f"the chat template writes {len(ids)} tokens around an empty prompt; "
            f"prompt_length is {limit}"
        )

    def check(self, messages: Messages, answer: str) -> None:
        """Raise unless the rendered prompt is a prefix of the rendered prompt and answer.

        Raises:
          ValueError: it is not, and `check_prefix` is set; shows where they differ. Or as `render`.
        """
        prompt = self.render(messages)
        if not self.config.check_prefix:
            return
        whole = self.render(messages, answer)
        if not whole.startswith(prompt):
            same = next(
                (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
                min(len(prompt), len(whole)),
            )
            raise ValueError(
                "the chat template renders a prompt that is not a prefix of prompt and answer: "
                f"{prompt[same:]!r} against {whole[same : same + 40]!r}. Change chat.thinking, or "
                "set chat.check_prefix to False"
            )

    def check_mark(self, mark: str) -> None:
        """Raise if responses are judged after a mark that the prompt already contains.

        Args:
          mark: `verifier.after`, such as "</think>"; "" for none.

        Raises:
          ValueError: the template's generation prompt contains the mark.
        """
        question = [{"role": "user", "content": _QUESTION}]
        if mark and mark in self.render(question).rpartition(_QUESTION)[2]:
            raise ValueError(
                f"verifier.after is {mark!r}, which the chat template writes at the end of every "
                "prompt, so no response would contain it; set chat.thinking to True, or "
                "verifier.after to ''"
            )

    def turn_end(self) -> int | None:
        """The control token that ends an answer, or None if the template writes none.

        It is the first control token after an answer at the end of a conversation. If there is
        none, it is the first one of the next turn, unless that is bos.
        """
        question = {"role": "user", "content": _QUESTION}
        talk = [question, {"role": "assistant", "content": _ANSWER}]
        end = self._control.first(_behind(_ANSWER, self._apply(talk, False)))
        if end is None:
            try:
                longer = self._apply([*talk, question], False)
            except ValueError:
                return None
            end = self._control.first(_behind(_ANSWER, longer))
            end = None if end == self.tokenizer.bos_token_id else end
        return end

    def _with_system(self, messages: Messages) -> list[dict[str, str]]:
        messages = [dict(message) for message in messages]
        if self.config.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.config.system})
        return messages

    def _apply(self, messages: Messages, generation_prompt: bool) -> str:
        """Renders messages with the template.

        Raises:
          ValueError: the template refuses them.
        """
        template, variables = self._template
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                enable_thinking=self.config.thinking,
                **variables,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses {messages!r}: {error}") from error

    def _encode(self, messages: Messages) -> list[int]:
        rendered, whole = self.render(messages), self._with_system(messages)
        return self._control.encode(self._pieces(whole, rendered))

    def _pieces(self, messages: Messages, rendered: str) -> list[Piece]:
        """Splits a rendered prompt into texts of the messages and texts of the template.

        It renders the messages with marks around their texts. If that changes the rendering, it
        only separates the control tokens that a message spells.
        """
        everything = "".join(message["content"] for message in messages)
        mark, other = _free(everything)
        text = self._apply([{**m, "content": _marked(m["content"], mark)} for m in messages], True)
        parts = text.split(mark)
        if len(parts) % 2 and "".join(parts) == rendered:
            return [Piece(part, index % 2 == 0) for index, part in enumerate(parts) if part]
        names = [name for name in self._control.ids if name in everything]
        hidden = {name: f"{mark}{other}{index}{mark}" for index, name in enumerate(names)}
        text = self._apply(
            [{**m, "content": _replace(m["content"], hidden)} for m in messages], True
        )
        spelled = {f"{other}{index}": name for index, name in enumerate(names)}
        return [Piece(spelled.get(part, part), part not in spelled) for part in text.split(mark)]

    @functools.cached_property
    def _remembered(self) -> Callable[[tuple[tuple[tuple[str, str], ...], ...]], list[int]]:
        """`_encode` of a conversation whose messages are tuples of their items."""
        return functools.lru_cache(_KEPT)(lambda items: self._encode(list(map(dict, items))))

    @functools.cached_property
    def _template(self) -> tuple[str, dict[str, str]]:
        """The template's text with a fixed date, and its variables."""
        return dated(self.tokenizer.get_chat_template(), self.config.date)

    @functools.cached_property
    def _control(self) -> ControlTokens:
        """The control tokens; it renders samples, as some templates build names: <| + role + |>."""
        written, talk = [self.tokenizer.get_chat_template()], []
        for role in ("user", "assistant", "user"):
            talk.append({"role": role, "content": "?"})
            for start in ([], [{"role": "system", "content": "?"}]):
                try:
                    written.append(self._apply([*start, *talk], role == "user"))
                except ValueError:  # the template refuses such a conversation
                    pass
        return ControlTokens(self.tokenizer, "\n".join(written))

    @functools.cached_property
    def _fault(self) -> str:
        """Why this template cannot make prompts, or ""."""
        question = [{"role": "user", "content": _QUESTION}]
        try:
            prompt, plain = self._apply(question, True), self._apply(question, False)
            whole = self._apply([*question, {"role": "assistant", "content": _ANSWER}], False)
        except ValueError:  # it may need other conversations
            return ""
        between = whole[len(prompt) :].partition(_ANSWER)
        if prompt != plain or not whole.startswith(prompt) or not between[0].strip():
            return ""
        return (
            "the chat template has no generation prompt: it writes "
            f"{between[0]!r} before an answer, but not for add_generation_prompt"
        )


def _check_kept(messages: Messages, rendered: str) -> None:
    """Raise if a system or user message is missing from the rendered text."""
    text = "".join(rendered.split())
    for message in messages:
        role, content = message["role"], message["content"]
        if role != "assistant" and "".join(content.split()) not in text:
            raise ValueError(f"the chat template drops the message of role {role!r}: {content!r}")


def _behind(answer: str, rendered: str) -> str:
    """The text after the answer.

    Raises:
      ValueError: the answer is missing.
    """
    _, found, rest = rendered.rpartition(answer)
    if not found:
        raise ValueError("the chat template does not write the assistant's messages")
    return rest


def _marked(content: str, mark: str) -> str:
    """Puts marks around a text but not around blanks at its ends, which templates strip."""
    core = content.strip()
    if not core:
        return content
    start = content.index(core)
    return f"{content[:start]}{mark}{core}{mark}{content[start + len(core) :]}"


def _free(text: str) -> tuple[str, str]:
    """Two marks that a text does not contain.

    Raises:
      ValueError: it contains nearly all of them.
    """
    free = [mark for mark in MARKS[:-2] if mark not in text]
    if len(free) < 2:
        raise ValueError("a message contains U+FDD0 to U+FDED, which are not Unicode characters")
    return free[0], free[1]


def _replace(text: str, table: Mapping[str, str]) -> str:
    for old in sorted(table, key=len, reverse=True):
        text = text.replace(old, table[old])
    return text
