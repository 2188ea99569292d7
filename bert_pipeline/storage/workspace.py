"""Workspaces: an unfinished artifact, under a lock.

`.unfinished.json` records the settings and inputs: the same command resumes, changed settings are
rejected with a diff. `--overwrite` writes to a hidden folder next to the old one, and swaps the two
at the end. Files that bertpipe did not write stay in the folder.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.config import StageConfig
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import (
    hash_file,
    hash_json,
    read_checked_json,
    recorded_hash,
    sync,
    write_checked_json,
)
from bert_pipeline.storage.locks import locked_folder
from bert_pipeline.storage.manifest import (
    FORMAT,
    MANIFEST,
    UNFINISHED,
    Input,
    Manifest,
    changed_files,
    installed_versions,
    read_manifest,
    read_manifest_file,
    write_manifest,
)
from bert_pipeline.storage.removal import remove_checksums, remove_leftovers, remove_written
from bert_pipeline.storage.swap import finish_swap, new_folder, swap


def finished_inputs(stage: str, config: StageConfig) -> dict[str, Input] | None:
    """The inputs of a finished artifact at `config.out` with the same settings; else None."""
    existing = read_manifest_file(config.out)
    if existing and (existing.stage, existing.config) == (stage, config.content()):
        return existing.inputs
    return None


def unfinished_folder(config: StageConfig) -> Path | None:
    """The folder in which an unfinished run of this stage would be; None when it is finished."""
    target = _resolve(config.out)
    if not (target / MANIFEST).is_file():
        return target
    return new_folder(target) if config.overwrite else None


def _resolve(out: Path) -> Path:
    """The folder itself where --out is a symbolic link to it."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@dataclass(frozen=True, slots=True)
class Working:
    """What a stage writes to an unfinished folder and its manifest does not list."""

    patterns: Sequence[str] = ()
    """Globs of files and folders, besides the files that have a recorded hash."""
    cancel: Callable[[Path], None] = lambda folder: None
    """Cancels the jobs on a cluster that may still write to an unfinished folder."""
    plan_extension: Callable[
        [Path, Mapping[str, Any], Mapping[str, Any]], Callable[[], None] | None
    ] = lambda folder, old, new: None
    """What prepares a finished folder with the old settings for new ones that extend it; None if
    they do not."""

    def remove(self, folder: Path) -> None:
        """Remove what the stage wrote to a folder; other files stay."""
        manifest = read_manifest_file(folder)
        remove_written(folder, self.patterns, manifest.files if manifest else ())


class Workspace:
    """An unfinished or finished artifact, under a lock."""

    def __init__(
        self,
        folder: Path,
        target: Path,
        record: dict[str, Any],
        working: Working,
        finished: Manifest | None = None,
    ) -> None:
        self.folder = folder
        """The folder to write to: the final one, or a hidden one next to it with `--overwrite`."""
        self.finished = finished
        """The manifest when the artifact is already complete, else None."""
        self._target = target
        self._record = record
        self._working = working

    def finish(self, counts: Mapping[str, Any], files: Iterable[Path]) -> Manifest:
        """Hash the data files, write the manifest, and swap in the folder; returns the manifest.

        Raises `BertpipeError` when a file has changed since it was written.
        """
        listed = {str(file.relative_to(self.folder)): _list_file(file) for file in files}
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
        write_manifest(self.folder, manifest)
        _remove_marks(self.folder)
        if self.folder != self._target:
            swap(self._target, self._working.patterns)
        return manifest


@contextmanager
def workspace(
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, Input],
    working: Working = Working(),
) -> Iterator[Workspace]:
    """Lock `config.out` and open it: complete already, to be resumed, or new.

    Raises `BertpipeError` when another process has the lock, when the folder has other content, or,
    with a diff, when it was made with other settings.
    """
    # The folder that a link points to is locked and replaced, and the link stays.
    target = _resolve(config.out)
    record = {
        "stage": stage,
        "config": config.content(),
        "inputs": {name: inputs[name] for name in sorted(inputs)},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(target):
        finish_swap(target, working.patterns)
        yield _open(target, record, working, config)


def _list_file(file: Path) -> dict[str, Any]:
    """The manifest's entry of a file, which is on the disk afterwards."""
    sync(file)
    found = hash_file(file)
    if recorded_hash(file) not in (None, found):
        file.unlink()
        raise BertpipeError(
            f"{file}: changed since it was written, and removed. Run the same command again to "
            "make it again."
        )
    return {"bytes": file.stat().st_size, "sha256": found}


def _remove_marks(folder: Path) -> None:
    """Remove what marks an unfinished folder, when its manifest is written."""
    (folder / UNFINISHED).unlink(missing_ok=True)
    remove_checksums(folder)


def _open(target: Path, record: dict[str, Any], working: Working, config: StageConfig) -> Workspace:
    try:
        existing = read_manifest_file(target)
    except BertpipeError:
        if not config.overwrite:
            raise
        return _start(new_folder(target), target, record, working, overwrite=True)
    if existing:
        return _reopen(target, record, working, existing, config)
    _check_other_files(target)
    return _start(target, target, record, working, config.overwrite)


def _reopen(
    target: Path,
    record: dict[str, Any],
    working: Working,
    existing: Manifest,
    config: StageConfig,
) -> Workspace:
    """The workspace of a folder that has a manifest."""
    if existing.stage != record["stage"]:
        raise BertpipeError(_explain_other_stage(target, existing.stage, record["stage"]))
    is_same = not _differences(_request(existing), _plain(record))
    # Reading all files takes time, so it is done where their damage would have no other way out.
    if is_same and not (config.overwrite and changed_files(target, existing, quiet=config.quiet)):
        _remove_marks(target)  # left by a kill after the manifest
        finished = read_manifest(target, existing.stage)
        return Workspace(target, target, record, working, finished)
    if not config.overwrite:
        return _extend(target, record, working, existing)
    new = new_folder(target)
    replacement = read_manifest_file(new)
    if (
        replacement
        and not _differences(_request(replacement), _plain(record))
        and not changed_files(new, replacement, quiet=config.quiet)
    ):
        _remove_marks(new)
        swap(target, working.patterns)  # the earlier run was killed just before
        return Workspace(target, target, record, working, read_manifest(target, replacement.stage))
    return _start(new, target, record, working, overwrite=True)


def _extend(
    target: Path, record: dict[str, Any], working: Working, existing: Manifest
) -> Workspace:
    """Reopen a finished folder whose settings differ, if the new ones extend it."""
    earlier = _request(existing)
    request = _plain(record)
    same_inputs = all(earlier[key] == request[key] for key in ("inputs", "format"))
    settings = (earlier["config"], request["config"])
    prepare = working.plan_extension(target, *settings) if same_inputs else None
    if prepare is None:
        raise BertpipeError(_explain_differences(target, earlier, request))
    # Once the marker is there, the same command can do all this again.
    write_checked_json(target / UNFINISHED, request)
    prepare()
    (target / MANIFEST).unlink()
    return Workspace(target, target, record, working)


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


def _start(
    folder: Path, target: Path, record: dict[str, Any], working: Working, overwrite: bool
) -> Workspace:
    """Prepare `folder` for writing; keeps the finished files of an earlier run."""
    marker = folder / UNFINISHED
    request = _plain(record)
    if folder.exists():
        working.cancel(folder)
    if not _can_resume(folder, request, overwrite):
        working.remove(folder)
        (folder / MANIFEST).unlink(missing_ok=True)  # of an earlier replacement
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    write_checked_json(marker, request)
    return Workspace(folder, target, record, working)


def _can_resume(folder: Path, request: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether an unfinished folder has the same request.

    Raises `BertpipeError` when it has another one, and something would be lost without
    `--overwrite`.
    """
    marker = folder / UNFINISHED
    if not marker.exists():
        return False
    try:
        earlier = read_checked_json(marker)
    except ValueError:
        problem = (
            f"{marker}: damaged, so this unfinished folder cannot be resumed. Use --overwrite to "
            "start again, or another --out."
        )
    else:
        if not _differences(earlier, request):
            return True
        problem = _explain_differences(folder, earlier, request)
        if earlier["stage"] != request["stage"] and _has_finished_files(folder):
            raise BertpipeError(_explain_other_stage(folder, earlier["stage"], request["stage"]))
    # A run that failed before its first file has nothing to lose.
    if not overwrite and _has_finished_files(folder):
        raise BertpipeError(problem)
    return False


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


def _explain_other_stage(folder: Path, old: str, new: str) -> str:
    return (
        f"{folder}: made by `bertpipe {old}`, which `bertpipe {new}` does not replace. Choose "
        "another --out."
    )


def _explain_differences(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changes = "\n  ".join(_differences(old, new))
    return (
        f"{folder}: made with other settings:\n  {changes}\n"
        "Use --overwrite to replace it, or another --out to keep both."
    )
