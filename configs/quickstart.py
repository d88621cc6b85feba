"""Spell words of four and five letters backward, under a verifier that is often wrong.

python experiments/train.py --config=configs/quickstart.py --workdir=runs/quickstart

About two minutes and 1.2 GiB on two CPU cores. Greedy accuracy on held-out words goes from 49.2
to 75.4 %, on invented words from 36.7 to 61.7 % (seed 0; rounding differences between machines
alone can move it by several points).
"""

import string
from pathlib import Path

from dfpo_jax.training.config import default_config
from dfpo_jax.training.config_argument import check_argument


def get_config(arg=None):
    """The run; `heavy_tail` replaces flipped rewards by rare large spikes.

    `mixed` has words of three to six letters, a longer warm start and no noise: prompts of which
    some are solved and some are not, for `experiments/critics.py`, and its critics read all
    there is to read.

    `value_model` trains the critic of `--config.algorithm=gvm` on responses of the policy as the
    warm start leaves it, which stays as it is.
    """
    check_argument(__file__, arg, "heavy_tail", "mixed", "value_model")
    config = default_config()
    config.task.dataset = "spell_backward"
    config.task.parameters = {"min_word_len": 4, "max_word_len": 5}
    config.task.partial_credit = False
    config.task.prompt = "{metadata[word]}="
    # Words of the same lengths that do not exist.
    config.out_of_domain.update(
        name="jsonl",
        dataset=str(Path(__file__).with_name("quickstart_invented.jsonl")),
        parameters={"answer": "backward"},
        prompt="{word}=",
        held_out_percent=99,
    )
    config.out_of_domain.verifier.name = "exact"
    config.tokenizer.alphabet = string.ascii_letters + "="
    config.model.update(
        vocab_size=64,
        d_model=96,
        num_layers=3,
        num_heads=3,
        num_kv_heads=3,
        head_dim=32,
        d_ff=256,
        init_std=0.1,
    )
    config.train.update(iterations=130, prompts=1024, samples=1, prompt_length=6, minibatches=4)
    config.sampling.max_new_tokens = 6
    config.warm_start.update(steps=130, batch_size=64)
    config.warm_start.optimizer.update(learning_rate=3e-3, warmup_steps=20, schedule="cosine")
    config.policy_optimizer.update(learning_rate=6e-4, warmup_steps=10, b1=0.95, b2=0.999)
    config.critic_optimizer.update(learning_rate=1e-2, b2=0.999)
    config.log_probs.recompute = False
    # The head alone learns fast, and half of the compute is saved.
    config.critic.update(trunk="detached", warmup=5)
    config.critic.flow.update(num_samples=4, num_quantiles=16, dcfm_weight=0.0)
    config.evaluation.every = 26
    config.checkpoint.every = 26
    if arg == "value_model":
        config.algorithm = "ppo"
        config.critic.update(trunk="own", warmup=0)
        config.critic_optimizer.learning_rate = 1e-3  # of a whole transformer
        config.train.update(frozen=("policy",), iterations=60)
    if arg == "mixed":
        config.task.parameters = {"min_word_len": 3, "max_word_len": 6}
        config.train.prompt_length = config.sampling.max_new_tokens = 7
        config.warm_start.steps = 200
        config.critic.update(confidence=True, pooled=True, whiten=0.01)
        config.critic_optimizer.learning_rate = 3e-3
    elif arg == "heavy_tail":
        config.rewards.spike.probability = 0.1
        config.advantage.name = "rank"
        config.critic.flow.value_bound = 10.0
    else:
        config.rewards.flip.update(false_positive=0.2, false_negative=0.2)
    return config
