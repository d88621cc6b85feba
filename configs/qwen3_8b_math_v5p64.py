"""Qwen3-8B on word problems under a verifier that flips 20 % of its rewards, on 64 chips of v5p.

python experiments/train.py --config=configs/qwen3_8b_math_v5p64.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v5p:4x4x4
--programs=prefill,decode,sample,prepare,train (jax 0.10.2, libtpu 0.0.42.1):

prefill: peak 8.44 GiB, 91% spare (arguments 0.48, temporaries 1.72, results 3.95, code 0.01,
  resident 2.28); 14.38 TFLOP, 46.85 GB memory traffic, sends GB: all-gather 7.39, all-reduce 3.72;
  at least 31.33 ms (MXU), 1.00 of the FLOP rate; compiled in 8 s
decode: peak 11.18 GiB, 88% spare (arguments 8.31, temporaries 0.05, results 0.00, code 0.06,
  resident 2.75); 0.2434 TFLOP, 4.543 GB memory traffic, sends GB: all-gather 0.00112, all-reduce
  0.0574, all-to-all 0.00729; at least 1.643 ms (HBM), 0.32 of the FLOP rate; compiled in 20 s;
  counted too low: 36 loops once, 0 kernels without FLOPs
sample: peak 13.13 GiB, 86% spare (arguments 0.48, temporaries 10.30, results 0.00, code 0.08,
  resident 2.28); 14.62 TFLOP, 63.02 GB memory traffic, sends GB: all-gather 7.39, all-reduce 3.78,
  all-to-all 0.00729, reduce-scatter 0.000393; at least 31.86 ms (MXU), 1.00 of the FLOP rate;
  compiled in 38 s; counted too low: 37 loops once, 0 kernels without FLOPs
prepare: peak 5.86 GiB, 94% spare (arguments 0.92, temporaries 4.81, results 0.09, code 0.03,
  resident 0.00); 980.7 TFLOP, 2172 GB memory traffic, sends GB: all-gather 61.7, all-reduce 238; at
  least 2137 ms (MXU), 1.00 of the FLOP rate, 15,336 tokens/s; compiled in 42 s
train: peak 13.62 GiB, 86% spare (arguments 2.77, temporaries 10.76, results 0.00, code 0.09,
  resident 0.00); 936.1 TFLOP, 2191 GB memory traffic, sends GB: all-gather 30.3, all-reduce 161,
  collective-permute 0.657, reduce-scatter 13.7; at least 2039 ms (MXU), 1.00 of the FLOP rate,
  4,017 tokens/s; compiled in 62 s
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
