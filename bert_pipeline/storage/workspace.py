"""Workspaces: an unfinished artifact, under a lock.

`.unfinished.json` records the settings and inputs: the same command resumes, changed settings are
rejected with a diff. `--overwrite` writes to a hidden folder next to the old one, and swaps the two
at the end.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_pipeline.config import StageConfig
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import hash_file, hash_json, write_json
from bert_pipeline.storage.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    Input,
    Manifest,
    damaged_files,
    installed_versions,
    read_manifest,
    read_manifest_file,
)


def finished_inputs(stage: str, config: StageConfig) -> dict[str, Input] | None:
    """The inputs of a finished artifact at `config.out` with the same settings; else None."""
    existing = read_manifest_file(config.out)
    if existing and (existing.stage, existing.config) == (stage, config.content()):
        return existing.inputs
    return None


def unfinished_folder(config: StageConfig) -> Path | None:
    """The folder in which an unfinished run of this stage would be; None when it is finished."""
    if read_manifest_file(config.out) is None:
        return config.out
    return _new(config.out) if config.overwrite else None


class Workspace:
    """An unfinished or finished artifact, under a lock."""

    def __init__(
        self, folder: Path, target: Path, record: dict[str, Any], finished: Manifest | None
    ) -> None:
        self.folder = folder
        """The folder to write to: the final one, or a hidden one next to it with `--overwrite`."""
        self.finished = finished
        """The manifest when the artifact is already complete, else None."""
        self._target = target
        self._record = record

    def finish(self, counts: Mapping[str, Any], files: Iterable[Path]) -> Manifest:
        """Hash the data files, write the manifest, and swap in the folder; returns the manifest."""
        listed = {
            str(f.relative_to(self.folder)): {"bytes": f.stat().st_size, "sha256": hash_file(f)}
            for f in files
        }
        fingerprint = hash_json(
            {"stage": self._record["stage"], "config": self._record["config"], "files": listed}
        )
        manifest = Manifest(
            **self._record,
            counts=dict(counts),
            files=listed,
            versions=installed_versions(),
            fingerprint=fingerprint,
        )
        write_json(self.folder / MANIFEST, asdict(manifest))
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        if self.folder != self._target:
            _swap(self._target)
        return manifest


@contextmanager
def workspace(stage: str, config: StageConfig, inputs: Mapping[str, Input]) -> Iterator[Workspace]:
    """Lock `config.out` and open it: complete already, to be resumed, or new.

    Raises `BertpipeError` when another process has the lock, when the folder has other content, or,
    with a diff, when it was made with other settings.
    """
    target = config.out
    record = {
        "stage": stage,
        "config": config.content(),
        "inputs": {name: inputs[name] for name in sorted(inputs)},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        _finish_swap(target)
        existing = read_manifest_file(target)
        if existing:
            yield _reopen(target, record, existing, config.overwrite)
        else:
            _check_other_files(target)
            yield _start(target, target, record, config.overwrite)


def _reopen(target: Path, record: dict[str, Any], existing: Manifest, overwrite: bool) -> Workspace:
    """The workspace of a folder that has a manifest."""
    if existing.stage != record["stage"]:
        raise BertpipeError(
            f"{target}: made by `bertpipe {existing.stage}`, which `bertpipe {record['stage']}` "
            "does not replace. Choose another --out."
        )
    is_same = not _differences(_request(existing), _plain(record))
    if is_same and not (overwrite and damaged_files(target, existing)):
        (target / UNFINISHED).unlink(missing_ok=True)  # left by a kill after the manifest
        return Workspace(target, target, record, read_manifest(target, existing.stage))
    if not overwrite:
        raise BertpipeError(_explain_differences(target, _request(existing), _plain(record)))
    replacement = read_manifest_file(_new(target))
    if (
        replacement
        and not _differences(_request(replacement), _plain(record))
        and not damaged_files(_new(target), replacement)
    ):
        _swap(target)  # the earlier run was killed just before
        return Workspace(target, target, record, read_manifest(target, replacement.stage))
    return _start(_new(target), target, record, overwrite=True)


def _check_other_files(target: Path) -> None:
    """Raise when `target` has files that are not from bertpipe."""
    if not target.exists():
        return
    if target.is_dir():
        # A run killed at its start leaves the temporary file of its marker.
        others = (path for path in target.iterdir() if not path.match(".*.tmp"))
        if (target / UNFINISHED).exists() or not any(others):
            return
    else:
        raise BertpipeError(f"{target}: is a file, not a folder. Choose another --out.")
    raise BertpipeError(f"{target}: has files that are not from bertpipe. Choose another --out.")


def _start(folder: Path, target: Path, record: dict[str, Any], overwrite: bool) -> Workspace:
    """Prepare `folder` for writing; keeps the finished files of an earlier run."""
    marker = folder / UNFINISHED
    request = _plain(record)
    if marker.exists():
        earlier = json.loads(marker.read_text(encoding="utf-8"))
        if _differences(earlier, request):
            # A run that failed before its first file has nothing to lose.
            if not overwrite and _has_finished_files(folder):
                raise BertpipeError(_explain_differences(folder, earlier, request))
            shutil.rmtree(folder)
    elif folder != target and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    write_json(marker, request)
    return Workspace(folder, target, record, None)


def _has_finished_files(folder: Path) -> bool:
    """Whether a file of the artifact, or of its hidden parts (`.parts`, `.tokens`), is finished."""
    parts = [path for kind in ("*.parquet", "*.arrow") for path in folder.rglob(kind)]
    return any(not path.name.startswith(".") for path in [*folder.iterdir(), *parts])


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and inputs as they are compared: inputs by fingerprint, without their paths."""
    inputs = {name: given.fingerprint for name, given in record["inputs"].items()}
    plain = {
        "stage": record["stage"],
        "config": record["config"],
        "inputs": inputs,
        "format": FORMAT,
    }
    result: dict[str, Any] = json.loads(json.dumps(plain))
    return result


def _request(manifest: Manifest) -> dict[str, Any]:
    return _plain(
        {"stage": manifest.stage, "config": manifest.config, "inputs": manifest.inputs}
    ) | {"format": manifest.format}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per difference between two requests."""
    lines = [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in ("stage", "format")
        if old.get(key) != new.get(key)
    ]
    for part in ("config", "inputs"):
        before = old.get(part, {})
        after = new.get(part, {})
        # An input that is in only one of them is reported by the option that names it.
        keys = before.keys() & after.keys() if part == "inputs" else before.keys() | after.keys()
        for key in sorted(keys):
            if before.get(key) == after.get(key):
                continue
            if part == "inputs":
                lines.append(f"{key}: its content changed")
            else:
                lines.append(f"{key}: {before.get(key)!r} → {after.get(key)!r}")
    return lines


def _explain_differences(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changes = "\n  ".join(_differences(old, new))
    return (
        f"{folder}: made with other settings:\n  {changes}\n"
        "Use --overwrite to replace it, or another --out to keep both."
    )


def _new(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _swap(target: Path) -> None:
    target.rename(_old(target))
    _new(target).rename(target)
    shutil.rmtree(_old(target))


def _finish_swap(target: Path) -> None:
    """Finish a swap that was killed, whichever of its renames were done."""
    if not target.exists():
        for folder in (_new(target), _old(target)):
            if (folder / MANIFEST).exists():
                folder.rename(target)
                break
    if target.exists() and _old(target).exists():
        shutil.rmtree(_old(target))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    path = target.with_name(f".{target.name}.lock")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise OSError("the previous owner has just removed this lock file")
        except OSError:
            raise BertpipeError(
                f"{target}: another bertpipe process writes this folder. Wait for it or stop it."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
