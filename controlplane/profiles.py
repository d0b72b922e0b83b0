"""Profiles: the routing policies by name, each a set of filters, weighted scorers and a picker.

round_robin    the next one in turn                    random         chance
least_load     fewest requests                         power_of_two   the less loaded of two drawn by chance
prefix         longest match, ties to least load. As defined, and so it herds: everybody shares the first block
cache_aware    SGLang's: the match where it pays and the fleet is balanced, else least load
weighted       llm-d's: prefix 3, queue 2, free KV 2
kv_cost        Dynamo's: blocks to prefill + blocks that decode
lmetric        (uncached + queued prefill tokens) x batch size: the default
linear_online  least TTFT by a linear model that learns from every request; near ties by lmetric
predictive     least TTFT by the model that serves; near ties, no model and uncertain predictions by lmetric
hierarchical   in the middle zone least TTFT by running requests and prompt length, elsewhere least active
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane import choosers, filters, picker, scorers
from controlplane.choosers import Chooser
from controlplane.filters import ACTIVE_MAX, Filter
from controlplane.picker import Picker
from controlplane.predictor import Forecaster
from controlplane.rankers import Layered, LeastOnline, LeastPredicted, Ranker
from controlplane.ranking import Briefing
from controlplane.scorers import Costs, Scorer

NAMES = (
    "round_robin",
    "random",
    "least_load",
    "power_of_two",
    "prefix",
    "cache_aware",
    "weighted",
    "kv_cost",
    "lmetric",
    "linear_online",
    "predictive",
    "hierarchical",
)
DEFAULT = "lmetric"


@dataclass(frozen=True, slots=True)
class WeightedScorer:
    """costs: least is best, where the scores are nothing but costs brought into [0, 1]."""

    name: str
    weight: float
    score: Scorer
    costs: Costs | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One policy. Totals are the weighted mean of its scorers, so in [0, 1]; without scorers they are 0. Where it has a
    ranker, that one decides, and the scorers among what it finds equal or leaves to them. costs: those of its only scorer,
    where the least of them is what it picks. choose: the same choice in one go, where there is such, without its ranker;
    brief: its ranker, where that has a short way; active_max: of the guard among its filters."""

    name: str
    filters: tuple[Filter, ...]
    scorers: tuple[WeightedScorer, ...]
    pick: Picker
    ranker: Ranker | None = None
    costs: Costs | None = None
    choose: Chooser | None = None
    brief: Briefing | None = None
    active_max: int = ACTIVE_MAX

    @property
    def short(self) -> bool:
        """Whether it has a short way."""
        ranker: object = self.ranker
        return self.choose is not None and self.brief is ranker

    @property
    def needs_chains(self) -> bool:
        """Whether it looks at prompts; data planes need not tokenise for one that does not."""
        return self.ranker is not None or any(entry.score is not scorers.load for entry in self.scorers)


def build(
    active_max: int = ACTIVE_MAX, *, predicted: LeastPredicted | None = None, layered: Layered | None = None
) -> dict[str, Profile]:
    """Every profile by name. All share the filters: no policy may choose what is broken, tried or over the guard.

    predicted, layered: rankers whose settings or models are somebody else's business; by default such as know nothing yet.
    """
    guards = (filters.NOT_TRIED, filters.BREAKER, filters.below_guard(active_max))

    def profile(
        name: str,
        pick: Picker,
        *weighted: WeightedScorer,
        ranker: LeastPredicted | LeastOnline | Layered | None = None,
        choose: Chooser | None = None,
    ) -> Profile:
        costs = weighted[0].costs if len(weighted) == 1 and pick is picker.highest else None
        return Profile(name, guards, weighted, pick, ranker, costs, choose, ranker, active_max)

    lmetric = WeightedScorer("lmetric", 1, scorers.lmetric, scorers.lmetric_costs)
    load = WeightedScorer("load", 1, scorers.load, scorers.load_costs)
    profiles = (
        profile("round_robin", picker.round_robin, choose=choosers.round_robin),
        profile("random", picker.uniform),
        profile("least_load", picker.highest, load, choose=choosers.least_load),
        profile("power_of_two", picker.power_of_two),
        profile("prefix", picker.highest, WeightedScorer("prefix", 1, scorers.prefix_length), choose=choosers.prefix),
        profile(
            "cache_aware", picker.highest, WeightedScorer("cache_aware", 1, scorers.cache_aware), choose=choosers.cache_aware
        ),
        profile(
            "weighted",
            picker.highest,
            WeightedScorer("prefix", 3, scorers.prefix_share),
            WeightedScorer("queue", 2, scorers.queue),
            WeightedScorer("kv_free", 2, scorers.kv_free),
            choose=choosers.weighted(3 / 7, 2 / 7, 2 / 7),
        ),
        profile(
            "kv_cost", picker.highest, WeightedScorer("kv_cost", 1, scorers.kv_cost, scorers.kv_costs), choose=choosers.kv_cost
        ),
        profile("lmetric", picker.highest, lmetric, choose=choosers.lmetric),
        profile("linear_online", picker.highest, lmetric, ranker=LeastOnline(), choose=choosers.lmetric),
        profile(
            "predictive",
            picker.highest,
            lmetric,
            ranker=predicted or LeastPredicted(Forecaster()),
            choose=choosers.lmetric,
        ),
        profile("hierarchical", picker.highest, load, ranker=layered or Layered(), choose=choosers.least_load),
    )
    assert tuple(entry.name for entry in profiles) == NAMES, "NAMES lists every profile once, in this order"
    return {entry.name: entry for entry in profiles}
