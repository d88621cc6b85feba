"""Qwen3-1.7B on word problems under a verifier that flips 20 % of its rewards, on 8 chips of v6e.

python experiments/train.py --config=configs/qwen3_1p7b_math_v6e8.py --workdir=DIR

Figures per chip, from tools/compile_for_tpu.py --topology=v6e:2x4
--programs=prefill,decode,sample,prepare,train --config.critic.flow.dcfm_weight=1
(jax 0.10.2, libtpu 0.0.52):

prefill: peak 11.08 GiB, 65% spare (arguments 0.80, temporaries 2.25, results 4.00, code 0.01,
  resident 4.01); 5.893 TFLOP, 21.27 GB memory traffic, sends GB: all-gather 3.01, collective-
  permute 3.17; at least 15.46 ms (ICI); compiled in 22 s
decode: peak 15.69 GiB, 51% spare (arguments 10.78, temporaries 0.04, results 0.00, code 0.06,
  resident 4.81); 0.1251 TFLOP, 11.27 GB memory traffic, sends GB: all-gather 0.000409; at least
  6.871 ms (HBM); compiled in 85 s
sample: peak 17.12 GiB, 47% spare (arguments 0.80, temporaries 12.23, results 0.00, code 0.08,
  resident 4.01); compiled in 421 s
prepare: peak 7.22 GiB, 77% spare (arguments 1.60, temporaries 5.54, results 0.04, code 0.03); 430.9
  TFLOP, 2526 GB memory traffic, sends GB: all-gather 1.09, all-reduce 2.8e-08, collective-permute
  6.34; at least 1540 ms (HBM); compiled in 502 s
train: peak 14.83 GiB, 54% spare (arguments 4.82, temporaries 9.90, results 0.00, code 0.12); 419.3
  TFLOP, 1047 GB memory traffic, sends GB: all-gather 12.1, all-reduce 52.3, collective-permute
  69.8; at least 638.5 ms (HBM); compiled in 236 s
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
