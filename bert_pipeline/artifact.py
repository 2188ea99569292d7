"""Artifacts: folders that say where they came from.

A stage writes its data files under temporary names, renames each when whole, and writes `manifest.json` last, so that
the manifest doubles as the mark of completion. Until then `.unfinished.json` records what is being made: the same
request goes on where it stopped, another one is refused. Replacing (`--overwrite`) builds in a hidden folder beside
the old one and swaps the two at the end.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bert_pipeline.config import StageConfig
from bert_pipeline.errors import BertpipeError

FORMAT = 3  # raised when the same settings would give other files
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished.json"
VERSIONED = (
    *("bertpipe", "tokenizers", "pyarrow", "numpy", "sentencex", "torch", "transformers", "accelerate"),
    *("datasets", "huggingface-hub", "ftfy", "py3langid", "datatrove", "rensa"),
)


@dataclass(frozen=True, slots=True)
class Input:
    """What a stage read: `path` for people, `fingerprint` for comparing."""

    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of a finished artifact."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Input]
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    fingerprint: str
    format: int = FORMAT


def hash_json(value: object) -> str:
    """A hexadecimal SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """A hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is synced and renamed, else removed."""
    # Not by process id: processes on other machines may have the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with explain_full_disk(path):
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn every library's way of saying 'disk full' into one message."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            raise BertpipeError(
                f"{path}: the disk is full. Free some space and run the same command again: what is finished is kept."
            ) from None
        raise


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path, stage: str) -> Manifest:
    """Read the manifest of a finished artifact of `stage`.

    Raises `BertpipeError` when the folder is missing, unfinished, of another stage, or lacks one of its files.
    """
    manifest = _read_manifest_file(folder)
    if manifest is None:
        if not folder.is_dir():
            raise BertpipeError(f"{folder}: no such folder; one made by `bertpipe {stage}` was expected.")
        hint = (
            "is unfinished: run the command that makes it again"
            if (folder / UNFINISHED).exists()
            else "has no manifest"
        )
        raise BertpipeError(f"{folder}: not a finished folder of `bertpipe {stage}` ({hint}).")
    if manifest.stage != stage:
        raise BertpipeError(
            f"{folder}: made by `bertpipe {manifest.stage}`; a folder made by `bertpipe {stage}` was expected."
        )
    for file in _damaged(folder, manifest):
        raise BertpipeError(f"{file}: missing or damaged since it was written; make {folder} again with --overwrite.")
    return manifest


def finished_inputs(stage: str, config: StageConfig) -> dict[str, Input] | None:
    """What the finished artifact at `config.out` was made of, if it was made by the same settings."""
    existing = _read_manifest_file(config.out)
    if existing and (existing.stage, existing.config) == (stage, config.content()):
        return existing.inputs
    return None


def _damaged(folder: Path, manifest: Manifest) -> list[Path]:
    files = {folder / name: entry["bytes"] for name, entry in manifest.files.items()}
    return [file for file, size in files.items() if not file.is_file() or file.stat().st_size != size]


def describe_input(out: Path, folder: Path, manifest: Manifest) -> Input:
    """An input's record for the manifest of the artifact at `out`."""
    return Input(path=os.path.relpath(folder.resolve(), out.resolve()), fingerprint=manifest.fingerprint)


class Workspace:
    """An artifact in the making, held under a lock."""

    def __init__(self, folder: Path, target: Path, record: dict[str, Any], finished: Manifest | None) -> None:
        self.folder = folder
        """Where to write; the final folder, or one beside it while an old artifact is being replaced."""
        self.finished = finished
        """The manifest, when the same artifact is already complete."""
        self._target, self._record = target, record

    def finish(self, counts: Mapping[str, Any], files: Iterable[Path]) -> Manifest:
        """Hash the data files, write the manifest and put the folder in its place."""
        listed = {str(f.relative_to(self.folder)): {"bytes": f.stat().st_size, "sha256": hash_file(f)} for f in files}
        fingerprint = hash_json({"stage": self._record["stage"], "config": self._record["config"], "files": listed})
        manifest = Manifest(
            **self._record, counts=dict(counts), files=listed, versions=_versions(), fingerprint=fingerprint
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
    record = {"stage": stage, "config": config.content(), "inputs": {name: inputs[name] for name in sorted(inputs)}}
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        _end_swap(target)
        existing = _read_manifest_file(target)
        yield _open(target, record, existing, config.overwrite)


def _open(target: Path, record: dict[str, Any], existing: Manifest | None, overwrite: bool) -> Workspace:
    if existing:
        if existing.stage != record["stage"]:
            raise BertpipeError(
                f"{target}: made by `bertpipe {existing.stage}`, and never replaced by `bertpipe {record['stage']}`. "
                "Choose another --out."
            )
        same = not _differences(_request(existing), _plain(record))
        if same and not (overwrite and _damaged(target, existing)):
            (target / UNFINISHED).unlink(missing_ok=True)  # a kill may have left it
            return Workspace(target, target, record, read_manifest(target, existing.stage))
        if not overwrite:
            raise BertpipeError(_refusal(target, _request(existing), _plain(record), "was made"))
        made = _read_manifest_file(_new(target))
        if made and not _differences(_request(made), _plain(record)) and not _damaged(_new(target), made):
            _swap(target)  # killed just before
            return Workspace(target, target, record, read_manifest(target, made.stage))
        return _start(_new(target), target, record, overwrite=True)
    # A run killed in its first moment leaves the temporary form of its marker.
    others = (path for path in target.iterdir() if not path.match(".*.tmp")) if target.is_dir() else iter(())
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
    plain = {"stage": record["stage"], "config": record["config"], "inputs": inputs, "format": FORMAT}
    result: dict[str, Any] = json.loads(json.dumps(plain))
    return result


def _request(manifest: Manifest) -> dict[str, Any]:
    return _plain({"stage": manifest.stage, "config": manifest.config, "inputs": manifest.inputs}) | {
        "format": manifest.format
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = [f"{key}: {old.get(key)} → {new.get(key)}" for key in ("stage", "format") if old.get(key) != new.get(key)]
    for part in ("config", "inputs"):
        before, after = old.get(part, {}), new.get(part, {})
        # An input that is not in both is told by the option that names it.
        for key in sorted(before.keys() | after.keys() if part == "config" else before.keys() & after.keys()):
            if before.get(key) != after.get(key):
                change = "its content changed" if part == "inputs" else f"{before.get(key)!r} → {after.get(key)!r}"
                lines.append(f"{key}: {change}")
    return lines


def _refusal(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], how: str) -> str:
    changes = "\n  ".join(_differences(old, new))
    return f"{folder}: {how} otherwise:\n  {changes}\nUse --overwrite to make it anew, or another --out to keep both."


def _read_manifest_file(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        inputs = {name: Input(**entry) for name, entry in raw.pop("inputs").items()}
        return Manifest(**raw, inputs=inputs)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BertpipeError(
            f"{path}: not a manifest that bertpipe {_versions()['bertpipe']} can read. Remove its folder."
        ) from None


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
        left = next((folder for folder in (_new(target), _old(target)) if (folder / MANIFEST).exists()), None)
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


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
