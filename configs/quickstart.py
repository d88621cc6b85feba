"""Write the last digits of a number backward, under a verifier that is often wrong.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

A minute and a half and 1.4 GiB on two CPU cores, a second run less. Greedy accuracy on held-out
numbers goes from 48.0 to 74.2 %, on numbers with equal neighbours from 35.2 to 67.6 % (seed 0;
rounding differences between machines alone can move it by several points).
"""

from pathlib import Path

from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run, whose verifier errs on a fifth of the responses.

    "73940162:3" asks for "261". Prompts ask for two, three, four or all eight digits, so that they
    differ in difficulty; numbers with equal neighbours, which training leaves out, are the
    out-of-domain set.

    `clean` has no noise. `heavy_tail` replaces flipped rewards by rare large spikes.

    `value_model` trains the critic of `--config.algorithm=gvm`, without noise, on responses of the
    policy as the warm start leaves it, which stays as it is.
    """
    check_argument(__file__, arg, "clean", "heavy_tail", "value_model")
    config = default_config()
    here = Path(__file__)
    for task, name in ((config.task, "quickstart"), (config.out_of_domain, "quickstart_doubles")):
        task.update(name="jsonl", dataset=str(here.with_name(f"{name}.jsonl")))
        task.parameters = {"answer": "backward"}
        task.prompt = "{number}:{last}"
        task.verifier.name = "exact"
    config.out_of_domain.held_out_percent = 99
    config.tokenizer.alphabet = "0123456789:"
    config.model.update(
        vocab_size=16,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        d_ff=176,
        init_std=0.1,
    )
    config.train.update(iterations=100, prompts=1024, samples=1, prompt_length=10, minibatches=4)
    config.train.keep_states = True
    config.sampling.max_new_tokens = 9
    # From a loss on, not for so many steps: every seed starts with about half of the prompts right.
    config.warm_start.update(steps=300, batch_size=64, stop_below=0.45)
    config.warm_start.optimizer.update(learning_rate=3e-3, warmup_steps=20, schedule="cosine")
    config.policy_optimizer.update(learning_rate=1e-3, warmup_steps=10, b1=0.95, b2=0.999)
    config.critic_optimizer.update(learning_rate=3e-3, b2=0.999)
    config.log_probs.recompute = False
    # The head alone learns fast, and half of the compute is saved. It reads all there is to read.
    config.critic.update(trunk="detached", warmup=5, confidence=True, pooled=True, whiten=0.01)
    config.critic.flow.update(num_samples=4, num_quantiles=16)
    config.evaluation.update(every=25, critic_prompts=64, critic_samples=32)
    config.checkpoint.every = 25
    if arg == "value_model":
        config.algorithm = "ppo"
        config.critic.update(trunk="own", warmup=0)
        config.critic_optimizer.learning_rate = 1e-3  # of a whole transformer
        config.train.update(frozen=("policy",), iterations=60)
    if arg == "heavy_tail":
        config.rewards.spike.probability = 0.1
    elif arg is None:
        config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    return config
