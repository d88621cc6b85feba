"""Qwen3-8B on word problems under a verifier that flips 20 %, on 64 chips of v5p.

python experiments/train.py --config=configs/qwen3_8b_math_v5p64.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v5p:4x4x4 (jax 0.10.2, libtpu 0.0.52):

prefill: peak 8.49 GiB, 91% spare (arguments 0.48, temporaries 1.76, results 3.95, code 0.03,
  resident 2.28); 14.39 TFLOP, 116.4 GB memory traffic, sends GB: all-gather 5.26,
  all-reduce 3.72, collective-permute 2.41; at least 42.09 ms (HBM); compiled in 143 s
decode: peak 11.21 GiB, 88% spare (arguments 8.31, temporaries 0.09, results 0.00, code 0.05,
  resident 2.75); 0.2615 TFLOP, 9.387 GB memory traffic, sends GB: all-gather 0.0303,
  all-reduce 0.0575; at least 3.395 ms (HBM); compiled in 22 s
train: peak 16.78 GiB, 82% spare (arguments 2.77, temporaries 13.88, results 0.00, code 0.12);
  936.2 TFLOP, 5946 GB memory traffic, sends GB: all-gather 17.1, all-reduce 152,
  collective-permute 37.3; at least 2151 ms (HBM); compiled in 164 s
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run; it takes no argument."""
    if arg is not None:
        raise ValueError(f"configs/qwen3_8b_math_v5p64.py:{arg}: there is no such argument")
    config = default_config()
    config.weights.source = "Qwen/Qwen3-8B"
    config.tokenizer.name = "weights"
    config.task.update(dataset="gsm_symbolic", partial_credit=False)
    config.task.chat.enabled = True
    config.task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.update(dataset="chain_sum", held_out_percent=99)
    config.noise.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_8b"])
    config.model.update(remat="full", max_positions=2048)
    config.sampling.max_new_tokens = 1536
    config.train.update(
        iterations=200,
        prompts=128,
        samples=8,
        prompt_length=512,
        prompt_buckets=(256,),
        minibatches=4,
        microbatches=2,
    )
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic_optimizer.update(learning_rate=5e-6, warmup_steps=10)
    config.critic.update(trunk="own", warmup=5)
    config.warm_start.batch_size = 64
    config.evaluation.update(every=20, prompts=256, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=16, tensor=4)
    return config
