"""The swap of a folder and its replacement at the end of `--overwrite`.

The replacement of NAME is `.NAME.new`, the old folder becomes `.NAME.old` and is removed. A kill at
any moment leaves a state that the next run finishes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import sync
from bert_pipeline.storage.manifest import MANIFEST, read_manifest_file
from bert_pipeline.storage.removal import remove_written


def new_folder(target: Path) -> Path:
    """The hidden folder where the replacement of `target` is written."""
    return target.with_name(f".{target.name}.new")


def swap(target: Path, working: Sequence[str]) -> None:
    """Replace `target` by its complete replacement; files that bertpipe did not write are kept."""
    target.rename(_old_folder(target))
    new_folder(target).rename(target)
    sync(target.parent)
    _remove_old(target, working)


def finish_swap(target: Path, working: Sequence[str]) -> None:
    """Finish a swap that was killed, whichever of its renames were done."""
    old = _old_folder(target)
    if not target.exists():
        for folder in (new_folder(target), old):
            if (folder / MANIFEST).exists():
                folder.rename(target)
                break
    if target.exists() and (old / MANIFEST).exists():
        _remove_old(target, working)


def _old_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _remove_old(target: Path, working: Sequence[str]) -> None:
    """Remove the old folder, after moving the files in it that bertpipe did not write.

    Its manifest is removed last: it says that the removal is not complete.
    """
    old = _old_folder(target)
    remove_written(old, working, _written_files(old, target))
    folders = [old]
    for path in sorted(old.rglob("*")):
        place = target / path.relative_to(old)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
            folders.append(path)
        elif path != old / MANIFEST:
            if place.exists():
                raise BertpipeError(
                    f"{path}: not from bertpipe, and {place} has the same name. Move it "
                    "elsewhere, and run the same command again."
                )
            path.rename(place)
    (old / MANIFEST).unlink()
    for folder in reversed(folders):
        folder.rmdir()


def _written_files(old: Path, target: Path) -> Iterable[str]:
    """The files that the old manifest lists; if it is damaged, those of the new one."""
    try:
        manifest = read_manifest_file(old)
    except BertpipeError:
        manifest = read_manifest_file(target)
    return manifest.files if manifest else ()
