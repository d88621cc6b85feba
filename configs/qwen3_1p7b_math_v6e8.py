"""Qwen3-1.7B on word problems under a verifier that flips 20 % of its rewards, on 8 chips of v6e.

python experiments/train.py --config=configs/qwen3_1p7b_math_v6e8.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v6e:2x4
--programs=prefill,decode,sample,prepare,train (jax 0.10.2, libtpu 0.0.42.1):

prefill: peak 11.19 GiB, 65% spare (arguments 0.80, temporaries 2.37, results 4.00, code 0.01,
  resident 4.01); 5.893 TFLOP, 18.19 GB memory traffic, sends GB: all-gather 5.48; at least 13.69 ms
  (ICI), 0.47 of the FLOP rate; compiled in 17 s
decode: peak 15.65 GiB, 51% spare (arguments 10.78, temporaries 0.00, results 0.00, code 0.05,
  resident 4.81); 0.111 TFLOP, 3.936 GB memory traffic, sends GB: all-gather 0.000409, all-reduce
  3.58e-06; at least 2.4 ms (HBM), 0.05 of the FLOP rate; compiled in 13 s; counted too low: 28
  loops once, 0 kernels without FLOPs
sample: peak 16.99 GiB, 47% spare (arguments 0.80, temporaries 12.12, results 0.00, code 0.07,
  resident 4.01); 6.004 TFLOP, 33.23 GB memory traffic, sends GB: all-gather 5.48, all-reduce
  3.58e-06; at least 20.26 ms (HBM), 0.32 of the FLOP rate; compiled in 35 s; counted too low: 29
  loops once, 0 kernels without FLOPs
prepare: peak 7.88 GiB, 75% spare (arguments 1.60, temporaries 6.20, results 0.04, code 0.03,
  resident 0.00); 430.9 TFLOP, 337.6 GB memory traffic, sends GB: all-gather 96.9, all-reduce 7e-08;
  at least 469.4 ms (MXU), 1.00 of the FLOP rate, 139,630 tokens/s; compiled in 46 s
train: peak 15.07 GiB, 53% spare (arguments 4.82, temporaries 10.17, results 0.00, code 0.08,
  resident 0.00); 411.7 TFLOP, 590.5 GB memory traffic, sends GB: all-gather 46.1, all-reduce 17.4,
  collective-permute 0.308, reduce-scatter 20; at least 448.4 ms (MXU), 1.00 of the FLOP rate,
  36,537 tokens/s; compiled in 104 s
"""

import dataclasses

from dfpo_jax.models.config import PRESETS
from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; it takes no argument."""
    check_argument(__file__, arg)
    config = default_config()
    config.weights.source = "Qwen/Qwen3-1.7B"
    config.tokenizer.name = "weights"
    config.task.update(dataset="gsm_symbolic", partial_credit=False)
    config.task.chat.enabled = True
    config.task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.update(dataset="chain_sum", held_out_percent=99)
    config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    config.model = dataclasses.asdict(PRESETS["qwen3_1p7b"])
    config.model.update(remat="full", max_positions=2048)
    config.sampling.max_new_tokens = 1536
    config.train.update(
        iterations=200,
        prompts=32,
        samples=8,
        prompt_length=512,
        prompt_buckets=(256,),
        minibatches=4,
        microbatches=4,
    )
    config.log_probs.chunk = 1536  # of a whole micro-batch: the gradient of the head is summed once
    config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
    config.critic_optimizer.update(learning_rate=5e-6, warmup_steps=10)
    config.critic.update(trunk="own", warmup=5)
    config.warm_start.batch_size = 64
    config.evaluation.update(every=20, prompts=128, critic_prompts=32, critic_samples=8)
    config.checkpoint.every = 20
    config.mesh.update(data=1, fsdp=8, tensor=1)
    return config
