"""Your own questions and answers from a JSONL file, with any published chat model: start here.

python experiments/train.py --config=configs/jsonl.py --workdir=runs/mine \\
    --config.task.dataset=train.jsonl --config.weights.source=Qwen/Qwen2.5-0.5B-Instruct

A line is an object such as {"question": "2 + 3?", "answer": "5"}. A share of the rows is held out,
or the file of --config.task.parameters.held_out=test.jsonl. Columns, prompt and verifier are
ordinary settings:

python experiments/train.py --config=configs/jsonl.py --workdir=runs/mine \\
    --config.task.dataset=train.jsonl --config.task.parameters.answer=target \\
    --config.task.prompt="{problem} End with the number." \\
    --config.task.verifier.name=number --config.task.verifier.extract=last_number

A value model for `--config.algorithm=gvm`, from preferences such as {"prompt": "2 + 3?", "chosen":
"5", "rejected": "6"}; the policy's own run names its directory:

python experiments/train.py --config=configs/jsonl.py:value_model --workdir=runs/value_model \\
    --config.task.dataset=preferences.jsonl
python experiments/train.py --config=configs/jsonl.py --workdir=runs/gvm \\
    --config.task.dataset=train.jsonl --config.algorithm=gvm --config.critic.trunk=own \\
    --config.critic.warmup=0 --config.critic.source=runs/value_model

--config.task.parameters.messages=COLUMN reads conversations. `tasks/jsonl.py` documents the columns
and `tasks/verifiers.py` the verifiers. A data set on the hub may replace the file. There is no
out-of-domain evaluation. The sizes suit a model of half a billion parameters. Not yet run in full.
"""

import dataclasses

from dfpo_jax.tasks.jsonl import Columns
from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; `value_model` trains a critic on preference pairs instead."""
    check_argument(__file__, arg, "value_model")
    config = default_config()
    config.weights.source = "Qwen/Qwen2.5-0.5B-Instruct"
    config.tokenizer.name = "weights"
    config.model.update(dtype="bfloat16", remat="full", max_positions=1024)
    config.task.update(name="jsonl", dataset="train.jsonl", overlong="skip")
    config.task.parameters = dataclasses.asdict(Columns())
    config.task.verifier.update(name="normalised", extract="none")
    config.task.chat.enabled = True
    config.train.update(iterations=200, prompts=64, samples=8, prompt_length=256, minibatches=4)
    config.train.microbatch_tokens = 24_576  # 32 packed rows
    config.train.prompt_buckets = (128, 192)
    config.sampling.max_new_tokens = 512
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic.update(trunk="detached", warmup=5)
    config.critic.flow.update(num_samples=4, num_quantiles=16)
    config.evaluation.update(every=20, out_of_domain=False)
    config.checkpoint.every = 20
    if arg == "value_model":
        config.algorithm, config.plan.name = "ppo", "pairs"
        config.train.update(frozen=("policy",), samples=2)
        config.critic.update(trunk="own", warmup=0)
        config.critic_optimizer.learning_rate = 1e-5  # of a whole transformer
        config.task.prompt = "{prompt}"
        config.task.parameters.answer = "chosen"
    return config
