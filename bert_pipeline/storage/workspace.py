"""Workspaces: an artifact in the making.

`.unfinished.json` records what is being made: the same request resumes where it stopped, another one is rejected.
Replacing (`--overwrite`) builds in a hidden folder beside the old one and swaps the two at the end.
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
    """What the finished artifact at `config.out` was made of, if it was made by the same settings."""
    existing = read_manifest_file(config.out)
    if existing and (existing.stage, existing.config) == (stage, config.content()):
        return existing.inputs
    return None


class Workspace:
    """An artifact in the making, held under a lock."""

    def __init__(
        self, folder: Path, target: Path, record: dict[str, Any], finished: Manifest | None
    ) -> None:
        self.folder = folder
        """Where to write; the final folder, or one beside it while an old artifact is being replaced."""
        self.finished = finished
        """The manifest, when the same artifact is already complete."""
        self._target, self._record = target, record

    def finish(self, counts: Mapping[str, Any], files: Iterable[Path]) -> Manifest:
        """Hash the data files, write the manifest and put the folder in its place."""
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
    """Lock `config.out` and decide: already complete, to be continued, to be made, or refused with a diff.

    Raises `BertpipeError` when another process holds the folder, or it holds something else.
    """
    target = config.out
    record = {
        "stage": stage,
        "config": config.content(),
        "inputs": {name: inputs[name] for name in sorted(inputs)},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        _end_swap(target)
        existing = read_manifest_file(target)
        yield _open(target, record, existing, config.overwrite)


def _open(
    target: Path, record: dict[str, Any], existing: Manifest | None, overwrite: bool
) -> Workspace:
    if existing:
        if existing.stage != record["stage"]:
            raise BertpipeError(
                f"{target}: made by `bertpipe {existing.stage}`, and never replaced by `bertpipe {record['stage']}`. "
                "Choose another --out."
            )
        same = not _differences(_request(existing), _plain(record))
        if same and not (overwrite and damaged_files(target, existing)):
            (target / UNFINISHED).unlink(missing_ok=True)  # a kill may have left it
            return Workspace(target, target, record, read_manifest(target, existing.stage))
        if not overwrite:
            raise BertpipeError(_refusal(target, _request(existing), _plain(record), "was made"))
        made = read_manifest_file(_new(target))
        if (
            made
            and not _differences(_request(made), _plain(record))
            and not damaged_files(_new(target), made)
        ):
            _swap(target)  # killed just before
            return Workspace(target, target, record, read_manifest(target, made.stage))
        return _start(_new(target), target, record, overwrite=True)
    # A run killed in its first moment leaves the temporary form of its marker.
    others = (
        (path for path in target.iterdir() if not path.match(".*.tmp"))
        if target.is_dir()
        else iter(())
    )
    holds_other = any(others) and not (target / UNFINISHED).exists()
    if holds_other or (target.exists() and not target.is_dir()):
        raise BertpipeError(f"{target}: holds files that are not bertpipe's; choose another --out.")
    return _start(target, target, record, overwrite)


def _start(folder: Path, target: Path, record: dict[str, Any], overwrite: bool) -> Workspace:
    marker, wanted = folder / UNFINISHED, _plain(record)
    if marker.exists():
        begun = json.loads(marker.read_text(encoding="utf-8"))
        if _differences(begun, wanted):
            # A request that failed before its first file has nothing to lose: its corrected form just begins anew.
            if not overwrite and _holds_work(folder):
                raise BertpipeError(_refusal(folder, begun, wanted, "was begun"))
            shutil.rmtree(folder)
    elif folder != target and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    write_json(marker, wanted)
    return Workspace(folder, target, record, None)


def _holds_work(folder: Path) -> bool:
    """Whether some file of the artifact is finished, or some part that it is made of (`.parts`, `.tokens`)."""
    parts = [path for kind in ("*.parquet", "*.arrow") for path in folder.rglob(kind)]
    return any(not path.name.startswith(".") for path in [*folder.iterdir(), *parts])


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The request as it is compared and stored: inputs by fingerprint, wherever they lie."""
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
    lines = [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in ("stage", "format")
        if old.get(key) != new.get(key)
    ]
    for part in ("config", "inputs"):
        before, after = old.get(part, {}), new.get(part, {})
        # An input that is not in both is told by the option that names it.
        for key in sorted(
            before.keys() | after.keys() if part == "config" else before.keys() & after.keys()
        ):
            if before.get(key) != after.get(key):
                change = (
                    "its content changed"
                    if part == "inputs"
                    else f"{before.get(key)!r} → {after.get(key)!r}"
                )
                lines.append(f"{key}: {change}")
    return lines


def _refusal(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], how: str) -> str:
    changes = "\n  ".join(_differences(old, new))
    return f"{folder}: {how} otherwise:\n  {changes}\nUse --overwrite to make it anew, or another --out to keep both."


def _new(target: Path) -> Path:
    return target.with_name(f".{target.name}.new")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _swap(target: Path) -> None:
    target.rename(_old(target))
    _new(target).rename(target)
    shutil.rmtree(_old(target))


def _end_swap(target: Path) -> None:
    """Finish what a swap that was killed left, whichever of its renames were done."""
    if not target.exists():
        left = next(
            (folder for folder in (_new(target), _old(target)) if (folder / MANIFEST).exists()),
            None,
        )
        if left:
            left.rename(target)
    if target.exists() and _old(target).exists():
        shutil.rmtree(_old(target))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    path = target.with_name(f".{target.name}.lock")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise OSError("the previous holder has just removed this lock file")
        except OSError:
            raise BertpipeError(
                f"{target}: another bertpipe is writing this folder. Wait for it, or stop it."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
