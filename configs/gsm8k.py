"""Grade-school mathematics with any published chat model; needs the extra "data" or a JSONL file.

python experiments/train.py --config=configs/gsm8k.py --workdir=runs/gsm8k \\
    --config.weights.source=Qwen/Qwen2.5-0.5B-Instruct

Not yet run in full. Without network, give a JSONL file with "question" and "answer", of which a
share is held out, and a directory with weights:

python experiments/train.py --config=configs/gsm8k.py --workdir=runs/gsm8k \\
    --config.task.dataset=train.jsonl --config.evaluation.out_of_domain=False \\
    --config.weights.source=DIRECTORY
"""

from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; it takes no argument."""
    check_argument(__file__, arg)
    config = default_config()
    config.weights.source = "Qwen/Qwen2.5-0.5B-Instruct"
    config.tokenizer.name = "weights"
    config.model.update(dtype="bfloat16", remat="full", max_positions=1024)
    config.task.preset = "gsm8k"
    config.task.chat.enabled = True
    config.task.overlong = "skip"
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.preset = "math500"
    config.train.update(iterations=200, prompts=64, samples=8, prompt_length=256, minibatches=4)
    config.train.microbatch_tokens = 24_576  # 32 packed rows
    config.train.prompt_buckets = (128, 192)
    config.sampling.max_new_tokens = 512
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic.update(trunk="detached", warmup=5)
    config.critic.flow.update(num_samples=4, num_quantiles=16)
    config.evaluation.every = 20
    config.checkpoint.every = 20
    return config
