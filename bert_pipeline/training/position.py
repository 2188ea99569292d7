"""The position of a run: everything but tensors that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in that of a run."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is after `step` steps."""

    step: int = 0
    tokens: int = 0
    """Real tokens (no padding) trained on."""
    epochs: float = 0.0
    """Passes over the training data, with the started one as a fraction."""
    elapsed_s: float = 0.0
    cursor: Mapping[str, int] = field(default_factory=dict)
    """The position in the data, as the task keeps it."""
    skipped: int = 0
    """Steps that were skipped because a loss or gradient was not finite."""
    bad_in_a_row: int = 0
    """How many of the latest steps were skipped."""
    regular: bool = False
    """Whether its checkpoint is one of every `checkpoint_every` steps, not of a stop or the end."""
    rolled_back: bool = False
    """Whether the run was rolled back to its last regular checkpoint since that was written."""
    best: float | None = None
    """The best value so far of the metric that selects checkpoints."""
    evaluations_since_best: int = 0
    precision: str = ""
    """The precision that `--precision auto` stood for."""
    is_stable: bool = False
    """Whether its checkpoint is the last one before the decay of the `wsd` schedule."""
    is_best: bool = False
    """Whether its checkpoint has the best value so far."""
