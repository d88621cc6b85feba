"""Advantages: how good an action was. One file and one field each."""

from dataclasses import dataclass, field
from typing import ClassVar

from dfpo_jax.advantages.agreement import Agreement
from dfpo_jax.advantages.batch import Batch
from dfpo_jax.advantages.channel import Channel
from dfpo_jax.advantages.check import check_advantage
from dfpo_jax.advantages.gae import Gae, Risk
from dfpo_jax.advantages.group import Group
from dfpo_jax.advantages.interface import Advantage, Scores, View
from dfpo_jax.advantages.min_variance import MinVariance
from dfpo_jax.advantages.pool import Pool
from dfpo_jax.advantages.precision import Precision
from dfpo_jax.advantages.rank import Rank
from dfpo_jax.advantages.sigma import Sigma
from dfpo_jax.advantages.tail_aware import TailAware
from dfpo_jax.settings import Choice

__all__ = ["Advantage", "Advantages", "Channel", "Risk", "Scores", "View", "check_advantage"]


@dataclass(frozen=True)
class Advantages(Choice):
    """The advantage.

    Attributes:
      name: one of the advantages below, or one of your own.
      custom: settings of one of your own.
      whiten: subtract the mean and divide by the deviation over all valid tokens.
      channel: known error rates of the verifier, whose effect on what the critic predicts is undone
        before the advantage reads it.
    """

    kind: ClassVar[str] = "advantage"
    name: str = "gae"
    whiten: bool = True
    channel: Channel = field(default_factory=Channel)
    gae: Gae = field(default_factory=Gae)
    sigma: Sigma = field(default_factory=Sigma)
    precision: Precision = field(default_factory=Precision)
    rank: Rank = field(default_factory=Rank)
    agreement: Agreement = field(default_factory=Agreement)
    group: Group = field(default_factory=Group)
    tail_aware: TailAware = field(default_factory=TailAware)
    pool: Pool = field(default_factory=Pool)
    batch: Batch = field(default_factory=Batch)
    min_variance: MinVariance = field(default_factory=MinVariance)

    def build(self) -> Advantage:
        """The advantage.

        Raises:
          ValueError: an advantage of your own is wrong; one line.
        """
        return self.build_chosen(check_advantage)
