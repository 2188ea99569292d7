"""Experiment trackers, through Accelerate."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers, get_available_trackers

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.storage.atomic import hash_json
from bert_pipeline.training.config import TrainConfig

FOLDER = "trackers"
PROJECT = "bertpipe"


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise `UsageError` for an unknown tracker, `BertpipeError` for one that is not installed."""
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"--tracker {name}: unknown. Known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}."
            )
        if name not in available:
            raise BertpipeError(
                f"--tracker {name}: its package is not installed; `pip install {name}`."
            )


class Trackers:
    """The trackers of a run; a resumed run continues in them."""

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, folder: Path, after_step: int
    ) -> None:
        """Points of steps after `after_step` will be sent again."""
        self._accelerator = accelerator
        self._names = config.tracker
        if not config.tracker:
            return
        accelerator.project_configuration.logging_dir = str(folder / FOLDER)
        accelerator.log_with = filter_trackers(list(config.tracker), str(folder / FOLDER))
        run_id = hash_json([str(config.out.resolve()), config.content()])[:16]
        resumed = {"name": config.out.resolve().name, "resume": "allow"}
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": after_step + 1},
            "wandb": {**resumed, "id": run_id, "dir": str(folder / FOLDER)},
            "trackio": resumed,
        }
        chosen = {name: options[name] for name in config.tracker if name in options}
        settings = {
            key: value
            for key, value in config.content().items()
            if isinstance(value, int | float | str)
        }
        accelerator.init_trackers(PROJECT, config=settings, init_kwargs=chosen)

    def log(self, line: Mapping[str, Any]) -> None:
        """Send a line of metrics."""
        if self._names:
            figures = {key: value for key, value in line.items() if key != "step"}
            self._accelerator.log(dict(_flatten(figures)), step=line["step"])


def _flatten(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Figures without those that are None; those of a mapping have its name before their own."""
    for name, value in figures.items():
        # Characters that some trackers reject become underscores.
        path = prefix + re.sub(r"[^\w.-]", "_", name)
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}/")
        elif value is not None:
            yield path, value
