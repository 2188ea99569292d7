"""Checkpoints that are whole or not there: tensors as safetensors, hashes in a manifest, renamed when synced."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import explain_full_disk, hash_file, hash_json

STATE = "state.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands after `step` steps."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    phase: int = 0
    """Which of the run's examples it trains on, from 0."""
    rows: int = 0
    """Examples of this phase taken so far, over all epochs."""
    skipped: int = 0
    """Steps that were left out because a loss or gradient was not finite."""
    bad_in_a_row: int = 0
    """How many of them are the last ones."""
    regular: bool = False
    """Whether a checkpoint of it is one of those that every so many steps bring, and not of a stop or the end."""
    went_back: bool = False
    """Whether the run went back to its last checkpoint since that was written."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint's content, whole tensors on the CPU."""

    position: Position
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    damaged: tuple[str, ...]
    """Newer ones that were passed over."""


def save_checkpoint(
    folder: Path,
    position: Position,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    keep: int,
) -> None:
    """Write `step-NNNNNNNN` out of whole tensors on the CPU, and only then remove the oldest ones beyond `keep`.

    The newest regular one stays in any case: it is what a run goes back to.
    """
    final = folder / f"step-{position.step:08}"
    temporary = folder / f".{final.name}.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        with explain_full_disk(final):
            for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
                save_file(dict(tensors), temporary / name)
            state = asdict(position) | {"sha256": _hash(temporary, position)}
            (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            if final.exists():  # left by a run that resumed from before it
                shutil.rmtree(final)
            temporary.rename(final)
            _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = _find(folder)
    # Those beyond this one could not be read, else the run had gone on from them.
    older = sorted((step for step in found if step <= position.step), reverse=True)
    regular = next((step for step in older if _is_regular(found[step])), None)
    for step in found.keys() - {*older[:keep], regular}:
        shutil.rmtree(found[step])


def load_newest(folder: Path, *, regular: bool = False) -> Loaded | None:
    """The newest checkpoint whose files match their hashes, or the newest regular one; None without any.

    Raises `BertpipeError` when there are some and all of them are damaged.
    """
    damaged: list[str] = []
    for _, candidate in sorted(_find(folder).items(), reverse=True):
        position = _verify(candidate)
        if position is None:
            damaged.append(candidate.name)
        elif position.regular or not regular:
            model, optimizer = (load_file(candidate / name) for name in (MODEL, OPTIMIZER))
            return Loaded(position, model, optimizer, tuple(damaged))
    if damaged and not regular:
        raise BertpipeError(
            f"{folder}: {', '.join(damaged)} damaged, and there is no other to go on from; --overwrite starts anew."
        )
    return None


def _verify(folder: Path) -> Position | None:
    """The position of a checkpoint if it is as it was written."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        hashes = state.pop("sha256")
        position = Position(**state)
        return position if hashes == _hash(folder, position) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_regular(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / STATE).read_text(encoding="utf-8"))["regular"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _find(folder: Path) -> dict[int, Path]:
    """Folders of checkpoints by their steps; what else lies there is let be."""
    names = {path: NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir()}
    return {int(match[1]): path for path, match in names.items() if match}


def _hash(folder: Path, position: Position) -> dict[str, str]:
    """What tells whether a checkpoint is as it was written."""
    return {STATE: hash_json(asdict(position))} | {
        name: hash_file(folder / name) for name in (MODEL, OPTIMIZER)
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
