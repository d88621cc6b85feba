"""Settings for known data sets: their source, their columns, and how to judge their answers.

A preset sets the keys of a task's section that are not set otherwise; see `TaskConfig`.
`dataset` is the data set's id on the Hugging Face hub, which needs the extra "data". To avoid that,
set it to the path of a JSONL file with the same columns.
"""

from collections.abc import Mapping
from typing import Any

_BOXED = {"name": "math_verify", "extract": "boxed"}
_STEPS = "{}\nPlease reason step by step, and put your final answer within \\boxed{{{{}}}}."
_LETTER = "{}\n\n{{choices}}\n\nAnswer with the letter of the right choice."


def _mathematics(dataset: str, question: str, answer: str, **parameters: str) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "prompt": _STEPS.format("{" + question + "}"),
        "parameters": {"answer": answer, **parameters},
        "verifier": dict(_BOXED),
    }


_ONE_SPLIT = {"split": "test", "held_out_split": ""}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gsm8k": {
        "dataset": "openai/gsm8k",
        "prompt": "{question}\nThink step by step, and end with #### and the number.",
        "parameters": {"subset": "main", "answer": "answer", "answer_extract": "hashes"},
        "verifier": {"name": "number", "extract": "hashes,boxed,last_number"},
    },
    "math500": _mathematics("HuggingFaceH4/MATH-500", "problem", "answer", **_ONE_SPLIT),
    "aime": _mathematics(
        "HuggingFaceH4/aime_2024", "problem", "answer", split="train", held_out_split=""
    ),
    "amc": _mathematics(
        "AI-MO/aimo-validation-amc", "problem", "answer", split="train", held_out_split=""
    ),
    "minerva": _mathematics("math-ai/minervamath", "question", "answer", **_ONE_SPLIT),
    "gpqa": {
        "dataset": "Idavidrein/gpqa",
        "prompt": _LETTER.format("{Question}"),
        "parameters": {
            "subset": "gpqa_diamond",
            "split": "train",
            "held_out_split": "",
            "answer": "",
            "choices": [
                "Correct Answer",
                "Incorrect Answer 1",
                "Incorrect Answer 2",
                "Incorrect Answer 3",
            ],
        },
        "verifier": {"name": "choice"},
    },
    "simpleqa": {
        "dataset": "basicv8vc/SimpleQA",
        "prompt": "{problem}\nAnswer briefly, between <answer> and </answer>.",
        "parameters": {"answer": "answer", **_ONE_SPLIT},
        "verifier": {"name": "normalised", "extract": "tags,none"},
    },
    "hle": {
        "dataset": "cais/hle",
        "prompt": "{question}\nGive your final answer between <answer> and </answer>.",
        "parameters": {
            "answer": "answer",
            "verifier": "answer_type",
            "verifiers": {"multipleChoice": "choice", "exactMatch": "normalised"},
            "empty": "image",
            **_ONE_SPLIT,
        },
        "verifier": {"name": "normalised", "extract": "tags"},
    },
}
