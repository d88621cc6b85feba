"""Qwen3-8B on word problems under a verifier that flips 20 % of its rewards, on 64 chips of v5e.

python experiments/train.py --config=configs/qwen3_8b_math_v5e64.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v5e:8x8
--programs=prefill,decode,sample,prepare,train (jax 0.10.2, libtpu 0.0.42.1):

prefill: peak 9.81 GiB, 39% spare (arguments 0.48, temporaries 3.61, results 3.88, code 0.01,
  resident 1.82); 7.19 TFLOP, 15.13 GB memory traffic, sends GB: all-gather 7.39, all-reduce 1.86;
  at least 46.25 ms (ICI), 0.79 of the FLOP rate; compiled in 11 s
decode: peak 8.48 GiB, 47% spare (arguments 6.06, temporaries 0.07, results 0.00, code 0.05,
  resident 2.29); 0.1217 TFLOP, 3.961 GB memory traffic, sends GB: all-gather 0.00167, all-reduce
  0.0287, all-to-all 0.00365; at least 4.836 ms (HBM), 0.13 of the FLOP rate; compiled in 15 s;
  counted too low: 36 loops once, 0 kernels without FLOPs
sample: peak 9.59 GiB, 40% spare (arguments 0.48, temporaries 7.23, results 0.00, code 0.06,
  resident 1.82); 7.311 TFLOP, 22.45 GB memory traffic, sends GB: all-gather 7.39, all-reduce 1.89,
  all-to-all 0.00365, reduce-scatter 0.000197; at least 46.42 ms (ICI), 0.80 of the FLOP rate;
  compiled in 26 s; counted too low: 37 loops once, 0 kernels without FLOPs
prepare: peak 3.41 GiB, 79% spare (arguments 0.92, temporaries 2.41, results 0.05, code 0.04,
  resident 0.00); 490.4 TFLOP, 198.7 GB memory traffic, sends GB: all-gather 123, all-reduce 119; at
  least 2489 ms (MXU), 1.00 of the FLOP rate, 6,582 tokens/s; compiled in 24 s
train: peak 8.77 GiB, 45% spare (arguments 2.30, temporaries 6.36, results 0.00, code 0.10, resident
  0.00); 464.2 TFLOP, 496.8 GB memory traffic, sends GB: all-gather 59.2, all-reduce 87.5,
  collective-permute 1.28, reduce-scatter 27.3; at least 2357 ms (MXU), 1.00 of the FLOP rate, 1,738
  tokens/s; compiled in 74 s
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; it takes no argument."""
    check_argument(__file__, arg)
    config = default_config()
    config.weights.source = "Qwen/Qwen3-8B"
    config.tokenizer.name = "weights"
    config.task.update(dataset="gsm_symbolic", partial_credit=False)
    config.task.chat.enabled = True
    config.task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.update(dataset="chain_sum", held_out_percent=99)
    config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_8b"])
    config.model.update(remat="full", max_positions=2048)
    config.sampling.max_new_tokens = 1536
    config.train.update(
        iterations=200,
        prompts=64,
        samples=8,
        prompt_length=512,
        prompt_buckets=(256,),
        minibatches=4,
        microbatches=4,
    )
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10, moment_dtype="bfloat16")
    config.critic_optimizer.update(learning_rate=5e-6, warmup_steps=10, moment_dtype="bfloat16")
    config.critic.update(trunk="own", warmup=5)
    config.warm_start.batch_size = 64
    config.evaluation.update(every=20, prompts=256, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=16, tensor=4)
    return config
