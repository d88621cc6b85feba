"""Qwen3-8B on word problems under a verifier that flips 20 % of its rewards, on 64 chips of v5e.

python experiments/train.py --config=configs/qwen3_8b_math_v5e64.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v5e:8x8
--programs=prefill,decode,sample,prepare,train --config.critic.flow.dcfm_weight=1
(jax 0.10.2, libtpu 0.0.52):

prefill: peak 9.80 GiB, 39% spare (arguments 0.48, temporaries 3.61, results 3.88, code 0.01,
  resident 1.82); 7.19 TFLOP, 17.03 GB memory traffic, sends GB: all-gather 15.5, all-reduce 1.86,
  collective-permute 2.41; at least 98.63 ms (ICI); compiled in 10 s
decode: peak 8.45 GiB, 47% spare (arguments 6.06, temporaries 0.04, results 0.00, code 0.06,
  resident 2.29); 0.1308 TFLOP, 6.276 GB memory traffic, sends GB: all-gather 0.0157, all-reduce
  0.0287; at least 7.663 ms (HBM); compiled in 15 s
sample: peak 9.50 GiB, 41% spare (arguments 0.48, temporaries 7.13, results 0.00, code 0.08,
  resident 1.82); compiled in 37 s
prepare: peak 5.67 GiB, 65% spare (arguments 0.92, temporaries 4.67, results 0.05, code 0.03); 490.4
  TFLOP, 3806 GB memory traffic, sends GB: all-gather 24.1, all-reduce 119, collective-permute 4.81;
  at least 4647 ms (HBM); compiled in 41 s
train: peak 8.76 GiB, 45% spare (arguments 2.30, temporaries 6.33, results 0.00, code 0.13); 464.3
  TFLOP, 692 GB memory traffic, sends GB: all-gather 148, all-reduce 82.9, collective-permute 65.5,
  reduce-scatter 0.00393; at least 2357 ms (MXU); compiled in 91 s
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
