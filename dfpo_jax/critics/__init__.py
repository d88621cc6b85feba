"""Critics: what the return of a state is, as functions of states. One file and one field each."""

import inspect
from dataclasses import dataclass, field
from typing import ClassVar

from dfpo_jax.critics.categorical import Categorical
from dfpo_jax.critics.check import check_critic
from dfpo_jax.critics.ensemble import Ensemble
from dfpo_jax.critics.flow import Flow
from dfpo_jax.critics.interface import Critic
from dfpo_jax.critics.iqn import Iqn
from dfpo_jax.critics.none import NoCritic
from dfpo_jax.critics.quantile import Quantile
from dfpo_jax.critics.robust import Robust
from dfpo_jax.critics.scalar import Scalar
from dfpo_jax.critics.scalar_flow import ScalarFlow
from dfpo_jax.critics.units import UNITS
from dfpo_jax.settings import Choice, check_choice, check_interval, check_unread

TRUNKS = ("own", "shared", "detached")
__all__ = ["Critic", "Critics", "check_critic"]


@dataclass(frozen=True)
class Critics(Choice):
    """The critic, and what every critic has, whatever its head.

    Attributes:
      name: one of the critics below, or one of your own.
      custom: settings of one of your own.
      trunk: "own" (a copy of the policy's transformer, trained with the critic; with LoRA a copy
        of the low-rank updates alone, beside the policy's kernels), "shared" (the policy's, critic
        gradients flow into it) or "detached" (the policy's, they do not).
      confidence: whether the critic also reads how probable the policy found what it wrote so far,
        see `algorithms.confidence`.
      pooled: whether the critic also reads the mean of its trunk's states so far, those of the
        prompt included, see `algorithms.trunk.critic_states`.
      whiten: 0, or the floor of `algorithms.whitening`: the critic then reads features of mean 0
        and covariance 1, all directions of which it learns alike. .01 is a good value; with W
        features an iteration costs W^3 more.
      lambda_: lambda of the critic's targets.
      warmup: the most iterations in which only the critic learns.
      warmup_patience: 0, or after how many iterations without a rise in the explained variance of
        the returns the warm-up ends early.
      warmup_rise: the least increase of its highest value so far that counts as a rise.
      loss_weight: coefficient of the critic's objective beside the policy's.
      units: what the critic learns in: "affine" (value units x = (G - mu) / s) or "asinh"
        (asinh(x), which resolves returns of several scales at once; ours). In "asinh" s is the
        scale of rewards without noise, see `algorithms.units`. Only of a critic that gives a law,
        as means do not commute with such a map; one of your own takes `units` in its `build`.
      source: "" or the work directory of another run, whose critic this one starts as: its
        parameters, in its units of value. Only with an own trunk.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    kind: ClassVar[str] = "critic"
    name: str = "flow"
    trunk: str = "own"
    confidence: bool = False
    pooled: bool = False
    whiten: float = 0.0
    lambda_: float = 0.95
    warmup: int = 0
    warmup_patience: int = 0
    warmup_rise: float = 0.01
    loss_weight: float = 1.0
    units: str = "affine"
    source: str = ""
    none: NoCritic = field(default_factory=NoCritic)
    scalar: Scalar = field(default_factory=Scalar)
    quantile: Quantile = field(default_factory=Quantile)
    categorical: Categorical = field(default_factory=Categorical)
    iqn: Iqn = field(default_factory=Iqn)
    ensemble: Ensemble = field(default_factory=Ensemble)
    robust: Robust = field(default_factory=Robust)
    flow: Flow = field(default_factory=Flow)
    scalar_flow: ScalarFlow = field(default_factory=ScalarFlow)

    def __post_init__(self):
        """Check ranges and names."""
        super().__post_init__()
        check_choice(self, "trunk", TRUNKS)
        check_choice(self, "units", tuple(UNITS))
        check_interval(self, "lambda_", low=0.0, high=1.0)
        check_interval(self, "warmup", "loss_weight", "warmup_rise", "whiten", low=0.0)
        check_interval(self, "warmup_patience", low=0, high=self.warmup)
        if self.warmup_patience == 0:
            check_unread(self, "warmup_rise", because="warmup_patience is 0")
        if self.source and self.trunk != "own":
            raise ValueError(
                f"source is {self.source!r} and trunk {self.trunk!r}; a critic that reads the "
                "states of another policy means nothing, so trunk must be 'own'"
            )

        if self._in_units:
            self._check_law()

    @property
    def _in_units(self) -> bool:
        """Whether a critic learns in other units than affine ones; none reads no units."""
        return self.units != "affine" and self.name != "none"

    def _check_law(self) -> None:
        takes = "units" in inspect.signature(type(self.chosen).build).parameters
        gives = self.build().gives if takes else frozenset()
        if "law" not in gives:
            why = "gives no law" if takes or not self.is_own else "takes no units in its build"
            raise ValueError(
                f"units is {self.units!r} and name {self.name!r}, which {why}; only quantiles can "
                "be mapped back without bias, so units must be 'affine', as in the preset 'ppo'"
            )

    def build(self) -> Critic | None:
        """The critic; None where there is none.

        Raises:
          ValueError: a critic of your own is wrong; one line.
        """
        inputs = (UNITS[self.units],) if self._in_units else ()
        return self.build_chosen(check_critic, *inputs)
