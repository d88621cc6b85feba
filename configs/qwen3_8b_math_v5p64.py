"""Qwen3-8B on GSM-Symbolic word problems under a verifier with 20 % flips, on 64 chips of v5p.

python experiments/train.py --config=configs/qwen3_8b_math_v5p64.py --workdir=DIR
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run."""
    del arg
    config = default_config()
    config.task.dataset = "gsm_symbolic"
    config.task.parameters = {"difficulty": 1.0}
    config.task.partial_credit = False
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.noise.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_8b"])
    config.model.update(remat="full", max_positions=2048)
    config.train.update(
        iterations=200, prompts=128, samples=8, prompt_length=512, minibatches=4, microbatches=2
    )
    config.sampling.max_new_tokens = 1536
    config.policy.update(logits_chunk=512, aggregation="token_mean")
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic_optimizer.update(learning_rate=5e-6, warmup_steps=10)
    config.critic.update(trunk="own", warmup=5)
    config.evaluation.update(every=20, items=256)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=16, tensor=4)
    return config
