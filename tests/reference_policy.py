"""Plain-numpy loops for the policy side, where the policy is `tiny.Markov`."""

import numpy as np
import reference


def valid_slots(row):
    return [i for i, m in enumerate(row) if m > 0]


def state_tokens(rollout):
    """[B, R + 1] the tokens that s_0 .. s_R consist of under a `Markov` model."""
    sequence = np.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1)
    return sequence[:, rollout.prompt_tokens.shape[1] - 1 :]


def log_probs(params, rollout, temperature):
    """[B, R] log-probabilities of the response, token by token."""
    logits = params["embedding"][state_tokens(rollout)[:, :-1]].astype(float) @ params["head"]
    return reference.token_log_probs(logits, rollout.tokens, temperature)


def kl(log_probs, ref_log_probs, kind):
    """[B, R] estimates of the KL from each token alone."""
    ratio = ref_log_probs - log_probs
    return {"k1": -ratio, "k2": ratio**2 / 2, "k3": np.exp(ratio) - 1 - ratio}[kind]


def shaped_rewards(controls, mask, rewards, bootstrap, *, kl=None, discount=1.0):
    """[B, R] normalised token rewards; `controls` holds mu, sigma and the KL weight."""
    mu, sigma = float(controls["value_shift"]), float(controls["value_scale"])
    out = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        slots = valid_slots(row)
        for i in slots:
            reward = float(rewards[b]) if i == slots[-1] else 0.0
            if kl is not None:
                reward -= float(controls["kl_coefficient"]) * kl[b, i]
            terminal = i == slots[-1] and not bootstrap[b]
            out[b, i] = (reward - mu if terminal else reward + (discount - 1) * mu) / sigma
    return out


def after_last(values, mask, bootstrap):
    """[B, ...] values [B, R + 1, ...] of the state behind the last token, 0 without bootstrap."""
    ends = [max([i + 1 for i in valid_slots(row)], default=0) for row in mask]
    return np.stack([values[b, end] * bootstrap[b] for b, end in enumerate(ends)])
