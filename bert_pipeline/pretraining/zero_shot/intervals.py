"""95% intervals of what is measured on a sample."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

Z = 1.959964
"""Standard deviations on each side of a 95% interval of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and the 95% interval around it."""

    value: float
    low: float
    high: float

    @classmethod
    def of_share(cls, count: int, total: int) -> Self:
        """A proportion, with Wilson's interval."""
        from scipy.stats import binomtest  # takes a second

        interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
        return cls(count / total, float(interval.low), float(interval.high))

    @classmethod
    def of_mean(
        cls, values: Sequence[float], least: float = -math.inf, most: float = math.inf
    ) -> Self:
        """A mean of independent values from `least` to `most`, with a normal interval."""
        mean = float(np.mean(values))
        error = Z * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return cls(mean, max(least, mean - error), min(most, mean + error))

    @classmethod
    def of_mean_share(cls, shares: Sequence[tuple[int, int]]) -> Self:
        """The mean of proportions (count, total), whose groups are fixed and not a sample.

        The interval is normal: the variance of a mean of proportions, each with two successes and
        two failures added, as Agresti and Coull 1998 do
        (https://doi.org/10.1080/00031305.1998.10480550), because a proportion of 0 or 1 would have
        none.
        """
        mean = float(np.mean([count / total for count, total in shares]))
        adjusted = [((count + 2) / (total + 4), total + 4) for count, total in shares]
        variance = sum(share * (1 - share) / total for share, total in adjusted)
        error = Z * variance**0.5 / len(shares)
        return cls(mean, max(0.0, mean - error), min(1.0, mean + error))

    def map(self, change: Callable[[float], float]) -> Self:
        """The estimate of an increasing function of the value."""
        return type(self)(change(self.value), change(self.low), change(self.high))

    def describe(self, form: str = ".1%") -> str:
        """`63.2% (61.5% to 64.9%)`."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"
