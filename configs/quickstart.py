"""Sums of numbers of one and two digits, under a verifier that is often wrong.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run; `heavy_tail` replaces flipped rewards by rare large spikes."""
    config = default_config()
    config.task.dataset = "chain_sum"
    config.task.parameters = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.task.prompt = "{metadata[expression]}"
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.parameters.update(min_terms=3, max_terms=3, max_digits=1)
    config.out_of_domain.held_out_percent = 99
    config.tokenizer.alphabet = "0123456789+-*/=() "
    config.model.update(
        vocab_size=24, d_model=96, num_layers=3, num_heads=3, num_kv_heads=3, head_dim=32, d_ff=256
    )
    config.train.prompt_length = 7
    config.sampling.max_new_tokens = 4
    config.warm_start.steps = 100
    config.warm_start.optimizer.learning_rate = 3e-3
    config.warm_start.optimizer.warmup_steps = 20
    config.policy_optimizer.warmup_steps = 10
    config.noise.false_positive = 0.2
    config.noise.false_negative = 0.2
    config.critic.warmup = 5
    config.policy.recompute_log_probs = False
    return config
