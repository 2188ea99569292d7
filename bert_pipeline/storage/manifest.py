"""Manifests: what an artifact was made from, and its content.

A stage writes its data files under temporary names, renames each when it is complete, and writes
`manifest.json` last, so that the manifest also marks completion.
"""

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import bar
from bert_pipeline.storage.atomic import hash_file, hash_json, write_checked_json

FORMAT = 5
"""Increased when the same settings give other files than before."""
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished.json"
VERSIONED = (
    "bertpipe",
    "tokenizers",
    "pyarrow",
    "numpy",
    "sentencex",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface-hub",
    "ftfy",
    "py3langid",
    "datatrove",
    "rensa",
)
"""Packages whose versions the manifest records."""


@dataclass(frozen=True, slots=True)
class Input:
    """What a stage read; inputs are compared by `fingerprint`, `path` is for information."""

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


def read_manifest(folder: Path, stage: str) -> Manifest:
    """Read the manifest of a finished artifact of `stage`.

    Raises `BertpipeError` when the folder is missing, unfinished, of another stage, or damaged.
    """
    manifest = read_manifest_file(folder)
    if manifest is None:
        if not folder.is_dir():
            raise BertpipeError(
                f"{folder}: no such folder; expected one made by `bertpipe {stage}`."
            )
        hint = (
            "it is unfinished; rerun the command that makes it to resume"
            if (folder / UNFINISHED).exists()
            else "it has no manifest"
        )
        raise BertpipeError(f"{folder}: not a finished folder of `bertpipe {stage}` ({hint}).")
    if manifest.stage != stage:
        raise BertpipeError(
            f"{folder}: made by `bertpipe {manifest.stage}`; expected a folder made by "
            f"`bertpipe {stage}`."
        )
    for file in damaged_files(folder, manifest):
        raise BertpipeError(
            f"{file}: missing or damaged since it was written. Rebuild {folder} with --overwrite."
        )
    return manifest


def damaged_files(folder: Path, manifest: Manifest) -> list[Path]:
    """The files of the manifest that are missing or have another size."""
    files = {folder / name: entry["bytes"] for name, entry in manifest.files.items()}
    return [
        file for file, size in files.items() if not file.is_file() or file.stat().st_size != size
    ]


def changed_files(folder: Path, manifest: Manifest, *, quiet: bool = False) -> list[Path]:
    """The files of the manifest that are missing or have another content; reads all of them."""
    changed = damaged_files(folder, manifest)
    total = sum(entry["bytes"] for entry in manifest.files.values())
    with bar(f"verifying {folder.name}", total, quiet=quiet, counted=False) as progress:
        for name, entry in manifest.files.items():
            file = folder / name
            if file not in changed and hash_file(file) != entry["sha256"]:
                changed.append(file)
            progress.advance(entry["bytes"])
    return changed


def verify_file(file: Path, sha256: str) -> None:
    """Raise `BertpipeError` if a file has another hash than its manifest lists.

    The checksums of Parquet cover the data of pages, but neither their headers nor the footer.
    """
    if hash_file(file) != sha256:
        raise BertpipeError(
            f"{file}: damaged, its hash does not match. Make its folder again with --overwrite."
        )


def describe_input(out: Path, folder: Path, manifest: Manifest) -> Input:
    """The record of an input for the manifest of the artifact at `out`."""
    return Input(
        path=os.path.relpath(folder.resolve(), out.resolve()), fingerprint=manifest.fingerprint
    )


def read_manifest_file(folder: Path) -> Manifest | None:
    """The manifest in a folder, of any stage; None without one. Raises when it is invalid."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        # Manifests of earlier versions have no hash of their own.
        if (recorded := raw.pop("sha256", None)) is not None and recorded != hash_json(raw):
            raise ValueError("its hash does not match")
        _check_files(path, raw["files"])
        inputs = {name: Input(**entry) for name, entry in raw.pop("inputs").items()}
        return Manifest(**raw, inputs=inputs)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BertpipeError(
            f"{path}: damaged, or not a manifest of bertpipe {installed_versions()['bertpipe']}. "
            "Make its folder again with --overwrite."
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which completes the artifact in `folder`."""
    write_checked_json(folder / MANIFEST, asdict(manifest))


def _check_files(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raise `BertpipeError` for an entry that leaves the folder, `TypeError` for a malformed one.

    A forged manifest must not make bertpipe read or remove files elsewhere.
    """
    for name, entry in files.items():
        listed = PurePath(name)
        is_path = listed.parts and "\0" not in name
        if not is_path or listed.is_absolute() or ".." in listed.parts:
            raise BertpipeError(
                f"{path}: lists {name!r}, which is not in its folder. Make the folder again with "
                "--overwrite."
            )
        if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
            raise TypeError(f"{name} has no size or hash")


def installed_versions() -> dict[str, str]:
    """The versions of bertpipe and of the packages that affect its output."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
