"""Whether a difference is more than noise: medians, with an interval that a bootstrap gives."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

RESAMPLES: Final = 1000
INTERVAL: Final = (0.025, 0.975)
FEW: Final = 5  # values below which the interval is widened to the ends of what was seen

Verdict = Literal["better", "worse", "noise"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio of two medians and the interval of 95 % that it lies in."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"

    def verdict(self, band: float) -> Verdict:
        """Of a ratio where more is better: beyond 1 ± band as a whole, or noise. band: 0.1 for 10 %."""
        if self.low > 1 + band:
            return "better"
        return "worse" if self.high < 1 / (1 + band) else "noise"


def ratio(now: Sequence[float], before: Sequence[float], seed: int = 1) -> Estimate:
    """Median of `now` by that of `before`, each of at least one value above 0.

    With few values a bootstrap knows too little of the tails, so then the interval is all that any two of them give.
    """
    found = statistics.median(now) / statistics.median(before)
    if min(len(now), len(before)) < FEW:
        return Estimate(found, min(now) / max(before), max(now) / min(before))
    chance = random.Random(seed)
    drawn = sorted(_drawn(now, chance) / _drawn(before, chance) for _ in range(RESAMPLES))
    low, high = (drawn[int(share * (RESAMPLES - 1))] for share in INTERVAL)
    return Estimate(found, low, high)


def _drawn(values: Sequence[float], chance: random.Random) -> float:
    return statistics.median(chance.choices(values, k=len(values)))
