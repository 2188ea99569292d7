"""`--protocol`: several runs instead of one, because fine-tuning varies with its seed.

`fast` takes three seeds; `full` takes the learning rates of Devlin et al. 2019, appendix A.3, with
five seeds each, and chooses one by the validation rows (Dodge et al. 2020, how scores vary:
https://arxiv.org/abs/2002.06305).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from bert_pipeline.finetuning.config import FinetuneConfig

FOLDER = "runs"
"""Folder of the runs in that of the protocol."""
FACTORS = {"fast": (1.0,), "full": (2 / 3, 1.0, 5 / 3)}
"""Factors of the default learning rate: 2e-5, 3e-5 and 5e-5 for a hidden size of 768."""
SEEDS = {"fast": 3, "full": 5}


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric over the seeds of a learning rate."""

    init: str
    learning_rate: float
    validation: Sequence[float]
    """Of each seed."""
    test: Sequence[float]
    """Of each seed; empty without test rows."""

    @property
    def reported(self) -> Sequence[float]:
        """On test rows where there are some."""
        return self.test or self.validation

    def describe(self) -> str:
        """Median, and the 95% interval of the mean (Student's t)."""
        low, high = interval(self.reported)
        return (
            f"median {statistics.median(self.reported):.4f}, mean "
            f"{statistics.fmean(self.reported):.4f} ({low:.4f} to {high:.4f}), "
            f"{len(self.reported)} seeds"
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean of some values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean
    error = statistics.stdev(values) / math.sqrt(len(values))
    width = error * float(student_t.ppf(0.975, len(values) - 1))
    return mean - width, mean + width


def plan_runs(config: FinetuneConfig, folder: Path, rate: float) -> list[FinetuneConfig]:
    """The options of all runs; `rate` is the default learning rate."""
    inits = ["pretrained", "random"] if config.compare_random else [config.init]
    given = config.learning_rate
    rates = [given] if given else [rate * factor for factor in FACTORS[config.protocol]]
    return [
        config.model_copy(
            update={
                "protocol": "single",
                "compare_random": False,
                "init": init,
                "learning_rate": rate,
                "seed": config.seed + seed,
                "out": folder / FOLDER / f"{init}-{rate:.1e}-seed-{config.seed + seed}",
                "overwrite": False,
                "quiet": True,
            }
        )
        for init in inits
        for rate in rates
        for seed in range(SEEDS[config.protocol])
    ]


def summarize(
    runs: Sequence[FinetuneConfig], counts: Sequence[Mapping[str, Any]], metric: str
) -> list[Summary]:
    """The metrics of each learning rate, and of random weights, over their seeds."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run, found in zip(runs, counts, strict=True):
        groups.setdefault((run.init, run.find_learning_rate()), []).append(found)
    return [
        Summary(
            init,
            rate,
            [found[f"eval_{metric}"] for found in members],
            [found[f"test_{metric}"] for found in members if f"test_{metric}" in found],
        )
        for (init, rate), members in groups.items()
    ]


def choose(summaries: Sequence[Summary], init: str) -> Summary:
    """The learning rate with the best median on validation rows."""
    own = [summary for summary in summaries if summary.init == init]
    return max(own, key=lambda summary: statistics.median(summary.validation))


def to_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [asdict(summary) for summary in summaries]
