"""Sums and differences of two or three digits, under a verifier that is often wrong.

    python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from dfpo_jax.training.config import default_config


def get_config(arg=None):
    """The run; `heavy_tail` replaces flipped rewards by rare large spikes."""
    if arg not in (None, "heavy_tail"):
        raise ValueError(f"configs/quickstart.py:{arg}: the argument must be heavy_tail or absent")
    config = default_config()
    config.task.dataset = "chain_sum"
    config.task.parameters = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    config.task.prompt = "{metadata[expression]}"
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.parameters = {
        "min_terms": 4,
        "max_terms": 4,
        "min_digits": 1,
        "max_digits": 1,
    }
    config.tokenizer.alphabet = "0123456789+- "
    config.model.update(
        vocab_size=24,
        d_model=96,
        num_layers=3,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        d_ff=256,
        init_std=0.1,
    )
    config.train.update(iterations=120, prompts=128, samples=4, prompt_length=9, minibatches=2)
    config.sampling.max_new_tokens = 4
    config.warm_start.update(steps=450, batch_size=64)
    config.warm_start.optimizer.update(learning_rate=3e-3, warmup_steps=20, schedule="cosine")
    config.policy_optimizer.update(learning_rate=3e-4, warmup_steps=10)
    config.policy.recompute_log_probs = False
    config.critic.warmup = 5
    if arg == "heavy_tail":
        config.noise.spike_probability = 0.1
        config.policy.advantage = "rank"
    else:
        config.noise.update(false_positive=0.2, false_negative=0.2)
    return config
