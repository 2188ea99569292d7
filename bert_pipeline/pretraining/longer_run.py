"""A finished run of the `wsd` schedule made longer: it goes on from before its decay."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bert_pipeline.config import flag
from bert_pipeline.errors import BertpipeError
from bert_pipeline.training.checkpoint import find_stable, newer_checkpoints
from bert_pipeline.training.optimizers.registry import OPTIMIZERS
from bert_pipeline.training.position import CHECKPOINTS
from bert_pipeline.training.schedule import RunLength

PROGRESS_BY = {"max_steps": "steps", "max_tokens": "tokens", "max_epochs": "epochs"}
BY_CLOCK = "max_minutes"


def plan_longer_run(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Callable[[], None] | None:
    """What prepares a finished run for a raised length; None if other settings differ too.

    `old` and `new` are the settings of the run in `folder`, and those asked for. The constant
    learning rate before the decay of `wsd` does not depend on the length (Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392), so the run is the same as if it had been this long from the
    start, but for its warm-up. Raises `BertpipeError` with the reason if the run cannot be longer.
    """
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    if len(changed) != 1 or not changed <= {*PROGRESS_BY, BY_CLOCK}:
        return None
    (length,) = changed
    if reason := _find_obstacle(length, old, new):
        raise BertpipeError(
            f"{folder}: finished with {flag(length)} {old[length]}; it cannot go on to "
            f"{new[length]}: {reason}. To train its model further with a new schedule, give it to "
            "--init-from and choose another --out; to start again, use --overwrite."
        )
    checkpoints = folder / CHECKPOINTS
    stable = find_stable(checkpoints)
    if stable is None:
        raise BertpipeError(
            f"{folder}: cannot be made longer, its checkpoint from before the decay is missing or "
            "damaged. Use --overwrite to start again."
        )
    progress = RunLength(**{PROGRESS_BY[length]: new[length]}).progress(stable, 0.0)
    warmup = new["warmup"]
    if warmup is None:
        warmup = OPTIMIZERS[new["optimizer"]].warmup(new["batch_size"])
    batch_size_warmup = new["batch_size_warmup"] if new["batch_size_start"] else 0.0
    if progress < max(warmup, batch_size_warmup):
        raise BertpipeError(
            f"{folder}: {flag(length)} {new[length]} is too long to go on to: its warm-up would "
            f"end after step {stable.step:,}, where the run goes on. Start again in another --out."
        )
    return partial(_remove, newer_checkpoints(checkpoints, stable.step))


def _find_obstacle(length: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why a run cannot be made longer; empty if it can."""
    if old["schedule"] != "wsd":
        return f"its learning rate has decayed over the whole run (--schedule {old['schedule']})"
    if length == BY_CLOCK:
        return "the length of its phases was measured by the clock"
    if new[length] < old[length]:
        return "that is shorter"
    if old["mask_rate_end"] is not None:
        return "its mask rate has fallen over the whole run (--mask-rate-end)"
    if old["long_examples"] and old["long_share"] >= old["decay"]:
        return "its longer examples began before the decay (--long-share)"
    return ""


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)
