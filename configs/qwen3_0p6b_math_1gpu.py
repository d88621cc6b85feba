"""Qwen3-0.6B on word problems under a verifier that flips 20 %, on one GPU.

python experiments/train.py --config=configs/qwen3_0p6b_math_1gpu.py --workdir=DIR

By the sizes of its arrays, not measured: 5.6 GiB of parameters and moments, 2.2 of gradients while
training; 1.1 of parameters in bfloat16 and 7.0 of cache while sampling. The critic is a head on the
policy's hidden states, so that a card of 24 GiB should do.
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run; it takes no argument."""
    if arg is not None:
        raise ValueError(f"configs/qwen3_0p6b_math_1gpu.py:{arg}: there is no such argument")
    config = default_config()
    config.weights.source = "Qwen/Qwen3-0.6B"
    config.tokenizer.name = "weights"
    config.task.update(dataset="gsm_symbolic", partial_credit=False)
    config.task.chat.enabled = True
    config.task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.update(dataset="chain_sum", held_out_percent=99)
    config.noise.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_0p6b"])
    config.model.update(remat="full", max_positions=1024)
    config.sampling.max_new_tokens = 768
    config.train.update(
        iterations=200,
        prompts=8,
        samples=8,
        prompt_length=256,
        prompt_buckets=(128, 192),
        minibatches=4,
        microbatches=4,
    )
    config.policy.logits_chunk = 128
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10, moment_dtype="bfloat16")
    config.critic_optimizer.update(learning_rate=1e-4, warmup_steps=10, moment_dtype="bfloat16")
    config.critic.update(trunk="detached", warmup=5)
    config.warm_start.batch_size = 16
    config.evaluation.update(every=20, prompts=64, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=1, tensor=1)
    return config
