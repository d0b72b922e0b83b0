"""A made-up workload of chats for experiments: lengths as people write, families of prompts that begin alike. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile
from random import Random

from loadgen.arrivals import RateProfile, process
from loadgen.rows import Row, own_blocks
from loadgen.workload import Shape
from simulation.workload import Job, jobs

BLOCK_TOKENS = 128
FAMILY_BLOCKS = 3
"""What a family shares: a system prompt of 384 tokens."""
SHARED_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Chats:
    """Prompts: log-normal about `prompt_tokens`, `spread` in log units, within `tokens_bounds`; answers: uniform.

    Half of the prompts long enough begin as one of `families` others do.
    """

    model: str
    prompt_tokens: float = 400.0
    spread: float = 0.9
    tokens_bounds: tuple[int, int] = (32, 3_500)
    answer_tokens: tuple[int, int] = (8, 120)
    families: int = 16

    @property
    def shape(self) -> Shape:
        return Shape(model=self.model)

    def jobs(self, profile: RateProfile, *, duration_s: float, rng: Random) -> list[Job]:
        """Poisson arrivals at the rates of `profile`, up to duration_s."""
        times = takewhile(lambda at_s: at_s < duration_s, process("poisson", profile, rng=rng))
        rows = (self._row(number, rng) for number in count())
        kept, unfit = jobs(rows, times, self.shape, model_len_max=self.tokens_bounds[1] + self.answer_tokens[1])
        assert unfit == 0, f"{unfit} prompts beyond the bounds {self.tokens_bounds}"
        return kept

    def _row(self, number: int, rng: Random) -> Row:
        low, high = self.tokens_bounds
        tokens = round(min(high, max(low, self.prompt_tokens * rng.lognormvariate(0.0, self.spread))))
        shared: tuple[range, ...] = ()
        if tokens > FAMILY_BLOCKS * BLOCK_TOKENS and rng.random() < SHARED_SHARE:
            first = FAMILY_BLOCKS * rng.randrange(self.families)
            shared = (range(first, first + FAMILY_BLOCKS),)
        return Row(0.0, own_blocks(number, tokens, BLOCK_TOKENS, shared=shared), rng.randint(*self.answer_tokens))
