"""Qwen3-1.7B on word problems under a verifier that flips 20 %, on 8 chips of v6e.

python experiments/train.py --config=configs/qwen3_1p7b_math_v6e8.py --workdir=DIR
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run; it takes no argument."""
    if arg is not None:
        raise ValueError(f"configs/qwen3_1p7b_math_v6e8.py:{arg}: there is no such argument")
    config = default_config()
    config.task.update(dataset="gsm_symbolic", parameters={}, partial_credit=False)
    config.out_of_domain.update(dataset="chain_sum", parameters={}, held_out_percent=99)
    config.noise.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_1p7b"])
    config.model.update(remat="full", max_positions=2048)
    config.sampling.max_new_tokens = 1536
    config.train.update(
        iterations=200,
        prompts=32,
        samples=8,
        prompt_length=512,
        minibatches=4,
        microbatches=4,
    )
    config.policy.logits_chunk = 256
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic_optimizer.update(learning_rate=5e-6, warmup_steps=10)
    config.critic.update(trunk="own", warmup=5)
    config.warm_start.batch_size = 64
    config.evaluation.update(every=20, items=128, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=8, tensor=1)
    return config
