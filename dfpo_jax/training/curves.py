"""Which metrics the report draws over the iterations, and under which titles."""

from collections.abc import Mapping
from typing import NamedTuple


class Curve(NamedTuple):
    """A learning curve chart: its title, unit and series (key of a row -> label).

    Attributes:
      title: heading.
      unit: label of the vertical axis.
      series: metrics key -> legend label; a final "*" matches all keys with that prefix.
      percent: whether values are shares, drawn in percent.
      zero_based: whether the vertical axis includes 0.
      log: whether the axis is logarithmic if all values are positive and span more than a factor
        of 30.
    """

    title: str
    unit: str
    series: Mapping[str, str]
    percent: bool = False
    zero_based: bool = True
    log: bool = False


CURVES = (
    Curve(
        "Reward",
        "reward per response",
        {"rollout/reward": "as trained on (noisy)", "rollout/clean_reward": "clean"},
    ),
    Curve(
        "Accuracy",
        "correct responses",
        {
            "rollout/accuracy": "training, sampled",
            "eval/in_domain/accuracy": "held out, in-domain",
            "eval/out_of_domain/accuracy": "held out, out-of-domain",
        },
        percent=True,
    ),
    Curve(
        "KL divergence of the policy",
        "nats per token",
        {"policy/kl_old": "to the policy of the iteration's start", "policy/kl": "to the start"},
    ),
    Curve("Policy entropy", "nats per token", {"policy/entropy": "entropy"}),
    Curve("Clipped updates", "share of tokens", {"policy/clip_fraction": "clipped"}, percent=True),
    Curve("Response length", "tokens", {"rollout/length": "mean length"}),
    Curve(
        "Errors of the rewards",
        "share",
        {
            "noise/false_positive": "wrong responses that were accepted",
            "noise/false_negative": "right responses that were not",
            "noise/top_wrong_rate": "all responses: the most accepted wrong answer",
        },
        percent=True,
    ),
    Curve("Critic losses", "loss", {"critic/*": ""}, log=True),
    Curve(
        "Critic: explained variance",
        "share of return variance",
        {
            "rollout/explained_variance": "training",
            "eval/critic/explained_variance": "held out",
        },
        zero_based=False,
    ),
    Curve(
        "Critic: distance to observed returns",
        "reward",
        {
            "eval/critic/wasserstein1": "Wasserstein-1 at the prompt",
            "eval/critic/crps": "CRPS over all tokens",
        },
    ),
    Curve(
        "Critic: what it knows of the prompt",
        "predicted against observed mean returns",
        {
            "eval/critic/correlation": "correlation",
            "eval/critic/spread": "ratio of standard deviations",
        },
    ),
)
