"""Random log-probabilities and advantages on the ragged rows, for objectives."""

import jax.numpy as jnp
import numpy as np
from tiny import ragged_rollout

from dfpo_jax.algorithms import Batch, Context
from dfpo_jax.objectives import Live

CONTEXT = Context(controls={"kl_coefficient": jnp.float32(0.3)}, policy_scale=jnp.float32(1.0))


def random_batch(seed=4):
    """A batch, and the live policy's log-probabilities around the old ones: (Batch, Live)."""
    rng = np.random.default_rng(seed)
    rollout = ragged_rollout()
    shape = rollout.mask.shape
    old = -rng.uniform(0.5, 3.0, shape)
    log_probs, reference = old + rng.normal(0, 0.4, (2, *shape))
    batch = Batch(
        row=np.arange(len(old)),
        sequence=None,
        valid=None,
        tokens=rollout.tokens,
        mask=rollout.mask,
        old_log_probs=old.astype(np.float32),
        ref_log_probs=reference.astype(np.float32),
        importance=rng.uniform(0.5, 2.0, shape).astype(np.float32),
        advantages=rng.normal(size=shape).astype(np.float32),
    )
    entropy = rng.uniform(0, 2, shape).astype(np.float32)
    return batch, Live(None, log_probs.astype(np.float32), entropy)
