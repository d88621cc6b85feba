"""The single-GPU smoke test: a few iterations with a 25M-parameter bfloat16 decoder.

python experiments/train.py --config=configs/gpu_smoke.py --workdir=runs/gpu_smoke

It runs warm start, sampling, DFPO with cuDNN attention, checkpoints and the report on one GPU. The
same command runs on a CPU, more slowly. It tests the installation, not the quality of DFPO.
"""

import string

from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; it takes no argument."""
    check_argument(__file__, arg)
    config = default_config()
    config.task.dataset = "spell_backward"
    config.task.parameters = {"min_word_len": 3, "max_word_len": 6}
    config.task.partial_credit = False
    config.task.prompt = "{metadata[word]}="
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.parameters = {"min_word_len": 7, "max_word_len": 8}
    config.tokenizer.alphabet = string.ascii_letters + "="
    config.model.update(
        vocab_size=64,
        d_model=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        d_ff=1536,
        dtype="bfloat16",
    )
    config.sampling.max_new_tokens = 9
    config.train.update(iterations=10, prompts=256, samples=2, prompt_length=9)
    config.warm_start.update(steps=100, batch_size=128)
    config.warm_start.optimizer.update(learning_rate=1e-3, warmup_steps=20)
    config.policy_optimizer.update(learning_rate=3e-5, warmup_steps=2)
    config.critic_optimizer.learning_rate = 1e-3
    config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    config.evaluation.update(every=5, prompts=128)
    config.checkpoint.every = 5
    return config
