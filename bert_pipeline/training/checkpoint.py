"""Checkpoints that are complete or absent: safetensors, hashes in a state file, one rename."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import atomic_folder, hash_file, hash_json
from bert_pipeline.training.position import Position

STATE = "state.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
FOLDER_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint, full tensors on the CPU."""

    position: Position
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    damaged: tuple[str, ...]
    """Newer ones that were skipped because their hashes do not match."""


def save_checkpoint(
    folder: Path,
    position: Position,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    keep: int,
) -> None:
    """Write `step-NNNNNNNN` from full tensors on the CPU, then remove old ones beyond `keep`.

    The newest regular one, to which a run is rolled back, the best one and the last one before the
    decay are kept in any case.
    """
    with atomic_folder(folder / f"step-{position.step:08}") as temporary:
        save_file(dict(model), temporary / MODEL)
        save_file(dict(optimizer), temporary / OPTIMIZER)
        state = asdict(position) | {"sha256": _hash(temporary, position)}
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
    found = _find(folder)
    # Newer ones than this one could not be read, else the run had resumed from them.
    older = sorted((step for step in found if step <= position.step), reverse=True)
    regular = next((step for step in older if _has_mark(found[step], "regular")), None)
    best = next((step for step in older if _has_mark(found[step], "is_best")), None)
    stable = next((step for step in older if _has_mark(found[step], "is_stable")), None)
    for step in found.keys() - {*older[:keep], regular, best, stable}:
        shutil.rmtree(found[step])


def load_newest(folder: Path, *, regular: bool = False) -> Checkpoint | None:
    """The newest checkpoint whose files match their hashes, or the newest regular one.

    None without any. Raises `BertpipeError` if there are some and all of them are damaged.
    """
    checkpoint, damaged = _load(folder, lambda position: position.regular or not regular)
    if checkpoint is None and damaged and not regular:
        raise BertpipeError(
            f"{folder}: {', '.join(damaged)} damaged or from another version of bertpipe, and "
            "there is no other checkpoint to resume from. --overwrite starts again from step 0."
        )
    return checkpoint


def load_best(folder: Path) -> Checkpoint | None:
    """The checkpoint with the best value of the selecting metric; None without one."""
    return _load(folder, lambda position: position.is_best)[0]


def find_stable(folder: Path) -> Position | None:
    """The position of the intact checkpoint from before the decay of `wsd`; None without one."""
    marked = (path for _, path in sorted(_find(folder).items()) if _has_mark(path, "is_stable"))
    return next((position for path in marked if (position := _verify(path))), None)


def newer_checkpoints(folder: Path, step: int) -> list[Path]:
    """The checkpoints after a step."""
    return [path for number, path in sorted(_find(folder).items()) if number > step]


def damaged_checkpoints(folder: Path) -> tuple[int, list[Path]]:
    """The number of checkpoints in a folder, and those whose files do not match their hashes."""
    found = [path for _, path in sorted(_find(folder).items())]
    return len(found), [path for path in found if _verify(path) is None]


def remove_damaged_checkpoints(folder: Path) -> list[str]:
    """Remove the checkpoints that nothing can resume from; returns their names."""
    _, damaged = damaged_checkpoints(folder)
    for path in damaged:
        shutil.rmtree(path)
    return [path.name for path in damaged]


def _load(
    folder: Path, is_wanted: Callable[[Position], bool]
) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint that is wanted, and the names of newer damaged ones."""
    damaged: list[str] = []
    for _, candidate in sorted(_find(folder).items(), reverse=True):
        position = _verify(candidate)
        if position is None:
            damaged.append(candidate.name)
        elif is_wanted(position):
            model = load_file(candidate / MODEL)
            optimizer = load_file(candidate / OPTIMIZER)
            return Checkpoint(position, model, optimizer, tuple(damaged)), damaged
    return None, damaged


def _verify(folder: Path) -> Position | None:
    """The position of a checkpoint if its files match their hashes."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        hashes = state.pop("sha256")
        position = Position(**state)
        return position if hashes == _hash(folder, position) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _has_mark(folder: Path, mark: str) -> bool:
    try:
        return bool(json.loads((folder / STATE).read_text(encoding="utf-8"))[mark])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _find(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by their steps; anything else in the folder is ignored."""
    names = {
        path: FOLDER_NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir()
    }
    return {int(match[1]): path for path, match in names.items() if match}


def _hash(folder: Path, position: Position) -> dict[str, str]:
    files = {name: hash_file(folder / name) for name in (MODEL, OPTIMIZER)}
    return {STATE: hash_json(asdict(position))} | files
