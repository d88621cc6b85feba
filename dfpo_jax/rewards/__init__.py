"""The reward chain: what happens to rewards between the verifier and the learner."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfpo_jax.rewards.check import check_link
from dfpo_jax.rewards.clip import Clip
from dfpo_jax.rewards.correction import Correction
from dfpo_jax.rewards.feature import Feature
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.interface import Initial, Link, Range, Scored, Start, chain
from dfpo_jax.rewards.learned import Learned
from dfpo_jax.rewards.length import Length
from dfpo_jax.rewards.majority import Majority
from dfpo_jax.rewards.master_key import MasterKey
from dfpo_jax.rewards.rank import Rank
from dfpo_jax.rewards.scale import Scale
from dfpo_jax.rewards.spike import Spike
from dfpo_jax.rewards.squash import Squash
from dfpo_jax.rewards.votes import Votes
from dfpo_jax.settings import call_custom, check_unread, load_part
from dfpo_jax.tasks.base import Item

__all__ = ["Initial", "Link", "Range", "Rewards", "Scored", "Start", "chain", "check_link"]

_TRIED = 4  # prompts


@dataclass(frozen=True)
class Rewards:
    """Links of the reward chain, in the order in which they act; by default none acts.

    Attributes:
      name: "", or "my_package.my_module:MyLink", a link of your own that acts first, on the
        verifier's rewards or those of `votes` or `learned`.
      custom: settings of that link.
      votes: answers by majority vote of the initial policy.
      learned: a learned reward model in place of the verifier.
      flip: flipped verdicts.
      master_key: a wrong answer that is accepted.
      majority: labels by the majority of a prompt's responses, in place of the verdicts so far.
      gaussian: Gaussian noise.
      spike: heavy-tailed spikes.
      correction: of known error rates of the verdicts so far.
      length: a penalty on long responses.
      feature: a bonus on a surface feature.
      scale: a factor.
      squash: logarithmic far from 0.
      clip: an interval.
      rank: ranks in place of the rewards so far.

    Raises:
      ValueError: there is no such link, `custom` is set and there is none of your own, or two links
        would both give rewards in place of the verifier's.
    """

    name: str = ""
    custom: Mapping[str, Any] = field(default_factory=dict)
    votes: Votes = field(default_factory=Votes)
    learned: Learned = field(default_factory=Learned)
    flip: Flip = field(default_factory=Flip)
    master_key: MasterKey = field(default_factory=MasterKey)
    majority: Majority = field(default_factory=Majority)
    gaussian: Gaussian = field(default_factory=Gaussian)
    spike: Spike = field(default_factory=Spike)
    correction: Correction = field(default_factory=Correction)
    length: Length = field(default_factory=Length)
    feature: Feature = field(default_factory=Feature)
    scale: Scale = field(default_factory=Scale)
    squash: Squash = field(default_factory=Squash)
    clip: Clip = field(default_factory=Clip)
    rank: Rank = field(default_factory=Rank)

    def __post_init__(self):
        """Load a link of the user's own; check what excludes each other or is not read."""
        if self.votes.samples > 0 and self.learned.samples > 0:
            raise ValueError(
                f"votes.samples is {self.votes.samples} and learned.samples "
                f"{self.learned.samples}; each gives rewards in place of the verifier's, so one of "
                "them must be 0"
            )
        if self.name:
            load_part(self.name, self.custom, "link")
        else:
            check_unread(self, "custom", because="nothing reads it while name is empty")

    def build(self, task_range: Range | None, items: Sequence[Item] = ()) -> Link:
        """The chain of all links that are on.

        Args:
          task_range: of the verifier's rewards; None where no bound is known.
          items: the task's prompts, all where they are a finite list. They decide the range of a
            correction whose rates differ by prompt; on the first few a link of your own is tried.

        Raises:
          ValueError: a link cannot work on such rewards or prompts, or one of your own is wrong;
            one line.
        """
        links = [link for link in (self.votes.build(), self.learned.build()) if link is not None]
        if self.name:
            part = load_part(self.name, self.custom, "link")
            own = call_custom(self.name, "build", part.build)
            own = check_link(own, self.name, chain(links).range(task_range), items[:_TRIED])
            links.append(own if own.words else own._replace(words=f"{self.name} changed them"))
        sections = (getattr(self, part.name) for part in dataclasses.fields(self))
        built = (
            part.build(items) if isinstance(part, Correction) else part.build()
            for part in sections
            if dataclasses.is_dataclass(part) and not isinstance(part, Votes | Learned)
        )
        chained = chain([*links, *(link for link in built if link is not None)])
        chained.range(task_range)  # raises
        return chained
