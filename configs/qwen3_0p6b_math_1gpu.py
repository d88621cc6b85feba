"""Qwen3-0.6B on word problems under a verifier that flips 20 % of its rewards, on one GPU.

python experiments/train.py --config=configs/qwen3_0p6b_math_1gpu.py --workdir=DIR

Sampling and training ran on an H200 with random weights (README, "On one GPU"). Figures from
tools/compile_for_gpu.py --gpu=h100 --programs=prefill,decode,sample,prepare,train
--config.critic.flow.dcfm_weight=1 (jax 0.10.2; decoding read filled chunks of the cache, now all of
it, and preparation read all rows at once, now four), of 59 GiB, the share of a card's memory that
JAX allocates. With --gpu=l4, a card of 24 GiB, the largest peak is 13.84 of 16 GiB:

prefill: peak 7.33 GiB, 88% spare (arguments 2.22, temporaries 0.16, results 1.62, code 0.00,
  resident 3.33); 1.864 TFLOP, 17.65 GB memory traffic; at least 5.268 ms (HBM)
decode: peak 13.99 GiB, 76% spare (arguments 8.40, temporaries 0.04, results 0.00, code 0.00,
  resident 5.55); 0.09132 TFLOP, 10.29 GB memory traffic; at least 3.073 ms (HBM)
sample: peak 13.84 GiB, 77% spare (arguments 2.22, temporaries 8.29, results 0.00, code 0.00,
  resident 3.33)
prepare: peak 3.26 GiB, 95% spare (arguments 2.22, temporaries 1.00, results 0.04, code 0.00);
  81 TFLOP, 360.3 GB memory traffic; at least 107.6 ms (HBM)
train: peak 11.20 GiB, 81% spare (arguments 5.56, temporaries 5.64, results 0.00, code 0.00);
  78.84 TFLOP, 433 GB memory traffic; at least 129.3 ms (HBM)
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; it takes no argument."""
    check_argument(__file__, arg)
    config = default_config()
    config.weights.source = "Qwen/Qwen3-0.6B"
    config.tokenizer.name = "weights"
    config.task.update(dataset="gsm_symbolic", partial_credit=False)
    config.task.chat.enabled = True
    config.task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.update(dataset="chain_sum", held_out_percent=99)
    config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
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
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10, moment_dtype="bfloat16")
    config.critic_optimizer.update(learning_rate=1e-4, warmup_steps=10, moment_dtype="bfloat16")
    config.critic.update(trunk="detached", warmup=5)
    config.warm_start.batch_size = 16
    config.evaluation.update(every=20, prompts=64, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=1, tensor=1)
    return config
