"""`bertpipe verify`: whether folders are as they were written, and their inputs unchanged."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import count_of, human_bytes
from bert_pipeline.stages import STAGES
from bert_pipeline.storage.atomic import checked_files, is_intact
from bert_pipeline.storage.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    changed_files,
    read_manifest_file,
)
from bert_pipeline.training.position import CHECKPOINTS

NAMED = 3
"""Problems of a folder that its line names; more are counted."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found in one folder."""

    folder: Path
    content: str
    """What was verified."""
    problems: tuple[str, ...]
    """What is damaged, missing, or does not match; empty if all is well."""
    notes: tuple[str, ...] = ()
    """What could not be verified."""

    def describe(self) -> str:
        """One line."""
        if not self.problems:
            return f"{self.folder}: intact ({', '.join([self.content, *self.notes])})"
        named = "; ".join(self.problems[:NAMED])
        more = len(self.problems) - NAMED
        return f"{self.folder}: damaged: {named}{f'; and {more:,} more' if more > 0 else ''}"


def verify_folders(folder: Path, *, quiet: bool = False) -> list[Verified]:
    """Verify the folder of a stage, or all of them in the folder of a run.

    Raises `BertpipeError` if there is none.
    """
    found = [folder] if _is_stage(folder) else _stage_folders(folder)
    if not found:
        raise BertpipeError(
            f"{folder}: no {MANIFEST} here or in a folder in it. Give the folder of a stage, or of "
            "a run."
        )
    return [_verify(path, quiet) for path in found]


def _is_stage(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MANIFEST, UNFINISHED))


def _stage_folders(run: Path) -> list[Path]:
    """The folders of stages in a folder, those of a recipe in the order in which they are made."""
    order = [stage.folder for stage in STAGES.values()]
    paths = [path for path in run.iterdir() if _is_stage(path)] if run.is_dir() else []
    known = {name: number for number, name in enumerate(order)}
    return sorted(paths, key=lambda path: (known.get(path.name, len(order)), path.name))


def _verify(folder: Path, quiet: bool) -> Verified:
    try:
        manifest = read_manifest_file(folder)
    except BertpipeError as error:
        return Verified(folder, "", (str(error),))
    checkpoints, problems = _verify_checkpoints(folder)
    if manifest is None:
        damaged = [path for path in checked_files(folder, "**/") if not is_intact(path)]
        problems += [f"{path.relative_to(folder)} changed, and is made again" for path in damaged]
        return Verified(folder, f"unfinished{checkpoints}", tuple(problems))
    changed = changed_files(folder, manifest, quiet=quiet)
    problems += [f"{path.relative_to(folder)} is missing or changed" for path in changed]
    size = human_bytes(sum(entry["bytes"] for entry in manifest.files.values()))
    inputs = dict(_compare_inputs(folder, manifest))
    problems += [f"{name} changed since ({path})" for name, path in inputs.items() if path]
    notes = tuple(
        f"{name} not found, not compared" for name, path in inputs.items() if path is None
    )
    content = f"{count_of(len(manifest.files), 'file')}, {size}{checkpoints}"
    return Verified(folder, content, tuple(problems), notes)


def _verify_checkpoints(folder: Path) -> tuple[str, list[str]]:
    """How many checkpoints there are, as text, and the problems."""
    if not (folder / CHECKPOINTS).is_dir():
        return "", []
    from bert_pipeline.training.checkpoint import damaged_checkpoints

    count, damaged = damaged_checkpoints(folder / CHECKPOINTS)
    problems = [f"{path.relative_to(folder)} is damaged, and not resumed from" for path in damaged]
    return f", {count_of(count, 'checkpoint')}", problems


def _compare_inputs(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Path | None]]:
    """The inputs that are folders and changed, with their paths, and those that are not found."""
    stage = STAGES.get(manifest.stage)
    for name in sorted(manifest.inputs.keys() & stage.inputs.keys()) if stage else ():
        given = manifest.inputs[name]
        place = folder.resolve() / given.path
        found = _fingerprint_model(place) if name == "model" else _fingerprint(place)
        if found != given.fingerprint:
            yield name, None if found is None else place


def _fingerprint_model(folder: Path) -> str | None:
    """The fingerprint of a model that was fine-tuned; None if there is none."""
    from bert_pipeline.predict.load import hash_model

    try:
        return hash_model(folder)
    except OSError:
        return None


def _fingerprint(folder: Path) -> str | None:
    """The fingerprint of an input: a stage's folder, or a tokenizer; None if there is none."""
    from bert_pipeline.tokenizer.load import load_tokenizer

    try:
        if manifest := read_manifest_file(folder):
            return manifest.fingerprint
        return load_tokenizer(folder).manifest.fingerprint if folder.is_dir() else None
    except BertpipeError:
        return None
