"""Measures how noisy a verifier is on your own file, before you train a policy on its rewards.

    python experiments/verifiers.py --dataset=train.jsonl --name=number --extract=last_number
    python experiments/verifiers.py --dataset=train.jsonl --preset=gsm8k
    python experiments/verifiers.py --preset=math500 --responses=runs/mine/samples.jsonl
    python experiments/verifiers.py --name=number --extract=hashes --answer=18 --response="#### 18"

With a data set, the program makes right and wrong responses from each reference answer, with the
texts ("dresses") that models write around an answer. For each kind of reference, a table gives how
many right responses the verifier misses (false negatives) and how many wrong ones it rewards (false
positives). Whether a response is right follows from how `_verifiers` made it.

--responses takes a JSONL file, such as a run's samples.jsonl, of objects with "response" and either
"answer" or "prompt" (a prompt of the data set). The table then gives the answer that the verifier
found in each response and its reward, and compares that with a "clean_reward" or "reward" in the
file.

Flags have the meaning of the settings of `config.task` with the same names. The verifier is
`normalised` unless --name or --preset is given, and rows may name their own, as in training.
"""

import ast
import dataclasses
import json
import logging

from _verifiers.dresses import pairs
from _verifiers.tables import judged_table, kinds_table, mistakes_table
from absl import flags

from dfpo_jax.tasks import Item
from dfpo_jax.tasks.rows import read_jsonl
from dfpo_jax.tasks.verifiers import VerifiedTask, Verifier, VerifierConfig
from dfpo_jax.training import command_line
from dfpo_jax.training.sources import TaskConfig

FLAGS = flags.FLAGS
_VERIFIER = ("name", "extract", "pattern", "after", "tolerance", "timeout")


def define_flags() -> None:
    """Defines the flags; not at import, since flags are global and tests import this file."""
    default = VerifierConfig()
    flags.DEFINE_string("dataset", None, "A JSONL file, or the id of a data set on the hub.")
    flags.DEFINE_string("preset", "", "A preset of config.task.preset.")
    flags.DEFINE_string("parameters", "{}", "config.task.parameters, as a Python dictionary.")
    flags.DEFINE_string("prompt", None, "Format string over a row.")
    flags.DEFINE_string("name", None, "The verifier.")
    flags.DEFINE_string("extract", None, "How to find the answer in a response.")
    flags.DEFINE_string("pattern", None, "The pattern of --extract=regex.")
    flags.DEFINE_string("after", None, "Marker after which the answer must be.")
    flags.DEFINE_float("tolerance", None, f"Tolerance of number; {default.tolerance} by default.")
    flags.DEFINE_float("timeout", None, f"Seconds per verdict; {default.timeout} by default.")
    flags.DEFINE_integer(
        "items", 100, "Number of rows, from the first, whose references are used.", 1
    )
    flags.DEFINE_integer("show", 10, "Mistakes to show of each kind.", 0)
    flags.DEFINE_string("responses", None, "A JSONL file of responses to judge instead.")
    flags.DEFINE_string("response", None, "One response to judge, against --answer.")
    flags.DEFINE_string("answer", None, "The reference of --response.")
    flags.DEFINE_string("json", None, "Also write the table to this file.")


def section(values: dict) -> TaskConfig:
    """The section `task` that the flags describe.

    Args:
      values: flags by name; None for flags that are not given.

    Raises:
      ValueError: a flag, its value and what is allowed.
    """
    try:
        parameters = ast.literal_eval(values["parameters"])
        if not isinstance(parameters, dict):
            raise ValueError
    except (SyntaxError, ValueError):
        raise ValueError(
            f"--parameters={values['parameters']} is not a dictionary such as "
            "{'answer': 'target'}"
        ) from None
    given = {name: values[name] for name in _VERIFIER if values[name] is not None}
    if not values["preset"]:
        given = {"name": "normalised"} | given
    named = {k: values[k] for k in ("dataset", "prompt") if values[k] is not None}
    task = TaskConfig(
        name="jsonl",
        preset=values["preset"],
        parameters=parameters,
        held_out_percent=0,
        verifier=VerifierConfig(**given),
        **named,
    )
    return dataclasses.replace(task.resolved(), preset="")


def rehearse(task: VerifiedTask, count: int) -> list[dict]:
    """Judges every dress of the references of a task's first items.

    Returns:
      One dictionary a pair: kind, answer, response, found, right (by construction), reward, status.

    Raises:
      ValueError: no reference is of a kind that the verifier reads.
    """
    config, asked = task.verifier.config, []
    for item in task.everything()[:count]:
        name = item.payload["verifier"]
        asked += [(item, name, pair) for pair in pairs(name, config.methods, [item.answer])]
    if not asked:
        raise ValueError(f"no reference of {task.name} is of a kind that {config.name!r} reads")
    verdicts = task.judge([item for item, _, _ in asked], [pair.response for _, _, pair in asked])
    return [
        {
            "kind": pair.reference.kind,
            "answer": item.answer,
            "response": pair.response,
            "found": task.verifier.found(pair.response, name),
            "right": pair.right,
            **verdict._asdict(),
        }
        for (item, name, pair), verdict in zip(asked, verdicts, strict=True)
    ]


def judge_file(path: str, verifier: Verifier, task: VerifiedTask | None) -> list[dict]:
    """Judges the responses of a file.

    Returns:
      One dictionary a response: answer, response, found, reward, status, and `given`, the reward in
      the file or None.

    Raises:
      ValueError: a line without a response, or whose item is not known; names the line.
    """
    known = {} if task is None else {item.prompt: item for item in task.everything()}
    items, responses, given = [], [], []
    for index, (where, row) in enumerate(read_jsonl(path).entries):
        prompt, reward = row.get("prompt"), row.get("clean_reward", row.get("reward"))
        item = known.get(prompt) if isinstance(prompt, str) else None
        if reward is not None and not isinstance(reward, int | float):
            raise ValueError(f"{where}: the reward is {reward!r}; it must be a number")
        if not isinstance(row.get("response"), str):
            raise ValueError(f"{where}: 'response' is {row.get('response')!r}; it must be a text")
        if item is None and "answer" not in row:
            raise ValueError(
                f"{where} has no 'answer', and its 'prompt' is none of the data set's prompts"
            )
        payload = {"row": row, "verifier": verifier.config.name}
        items.append(item or Item("", str(row["answer"]), payload, index))
        responses.append(row["response"])
        given.append(reward)
    names = [item.payload["verifier"] for item in items]
    verdicts = verifier.judge(items, responses, names)
    return [
        {
            "answer": i.answer,
            "response": r,
            "found": verifier.found(r, n),
            "given": g,
            **v._asdict(),
        }
        for i, r, n, g, v in zip(items, responses, names, given, verdicts, strict=True)
    ]


def main():
    """Judge, and print tables."""
    if not FLAGS.verbose:
        logging.getLogger("dfpo_jax").setLevel(logging.ERROR)
    with command_line.user_errors():
        values = {name: getattr(FLAGS, name) for name in (*_VERIFIER, "parameters", "prompt")}
        values |= {"dataset": FLAGS.dataset, "preset": FLAGS.preset}
        task_config = section(values)
        if (FLAGS.response is None) != (FLAGS.answer is None):
            raise ValueError("--response and --answer are given together or not at all")
        needs_data = FLAGS.responses is None and FLAGS.response is None
        if needs_data and not (FLAGS.dataset or FLAGS.preset):
            raise ValueError("give --dataset, --preset, --responses or --response")
        if FLAGS.responses and not FLAGS.dataset and task_config.parameters.get("verifier"):
            raise ValueError(
                f"the rows of preset {FLAGS.preset!r} name their verifiers; give --dataset too"
            )
        task = task_config.build("train") if FLAGS.dataset or needs_data else None
        verifier = task.verifier if task else Verifier(task_config.verifier, "responses")
        print(f"verifier {verifier.config.name}, extract {verifier.config.methods}")
        if FLAGS.response is not None:
            item = Item("", FLAGS.answer, {"row": {}, "verifier": verifier.config.name})
            (verdict,) = verifier.judge([item], [FLAGS.response])
            found = verifier.found(FLAGS.response)
            rows = [{"answer": FLAGS.answer, "response": FLAGS.response, "found": found}]
            rows[0] |= {"given": None, **verdict._asdict()}
        elif FLAGS.responses is not None:
            rows = judge_file(FLAGS.responses, verifier, task)
        else:
            rows = rehearse(task, FLAGS.items)
    solved = task_config.solved_at
    if needs_data:
        print(kinds_table(rows, solved))
        print(mistakes_table(rows, solved, FLAGS.show))
    else:
        print(judged_table(rows))
    if FLAGS.json:
        with open(FLAGS.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
