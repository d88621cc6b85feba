"""Qwen3-8B on word problems under a verifier that flips 20 % of its rewards, on 64 chips of v5p.

python experiments/train.py --config=configs/qwen3_8b_math_v5p64.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v5p:4x4x4
--programs=prefill,decode,sample,prepare,train --config.critic.flow.dcfm_weight=1
(jax 0.10.2, libtpu 0.0.52):

prefill: peak 8.48 GiB, 91% spare (arguments 0.48, temporaries 1.76, results 3.95, code 0.01,
  resident 2.28); 14.38 TFLOP, 89.12 GB memory traffic, sends GB: all-gather 5.26, all-reduce 3.72,
  collective-permute 2.41; at least 32.23 ms (HBM); compiled in 12 s
decode: peak 11.22 GiB, 88% spare (arguments 8.31, temporaries 0.09, results 0.00, code 0.06,
  resident 2.75); 0.2615 TFLOP, 11.54 GB memory traffic, sends GB: all-gather 0.0303, all-reduce
  0.0575; at least 4.173 ms (HBM); compiled in 14 s
sample: peak 12.55 GiB, 87% spare (arguments 0.48, temporaries 9.70, results 0.00, code 0.09,
  resident 2.28); compiled in 36 s
prepare: peak 10.21 GiB, 89% spare (arguments 0.92, temporaries 9.17, results 0.09, code 0.04);
  980.8 TFLOP, 7442 GB memory traffic, sends GB: all-gather 3.73, all-reduce 238, collective-permute
  4.81; at least 2692 ms (HBM); compiled in 73 s
train: peak 16.88 GiB, 82% spare (arguments 2.77, temporaries 13.98, results 0.00, code 0.13); 936.2
  TFLOP, 6289 GB memory traffic, sends GB: all-gather 15.6, all-reduce 152, collective-permute 36.8,
  reduce-scatter 0.00197; at least 2274 ms (HBM); compiled in 210 s
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
