"""Working files that changed while `bertpipe examples` was stopped are written again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig


def data_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("pattern", [".tokens/0*.arrow", ".tokens/used-*.npy", "train-*.parquet"])
def test_damaged_working_files_do_not_change_the_examples(
    pattern: str,
    tmp_path: Path,
    corpus_folder: Path,
    wordpiece_folder: Path,
    make_examples: Callable[..., Path],
) -> None:
    expected = make_examples("undamaged", dupe_factor=1)
    config = ExamplesConfig(  # type: ignore[call-arg]
        out=tmp_path / "examples",
        corpus=corpus_folder,
        tokenizer=wordpiece_folder,
        max_seq_length=64,
        dupe_factor=1,
        validation_fraction=0.1,
        workers=1,
        quiet=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.examples.build.manifest_counts", None)
        with pytest.raises(TypeError):
            build_examples(config)
    damaged = list(config.out.glob(pattern))
    assert damaged
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    build_examples(config)
    undamaged = data_files(expected)
    found = data_files(config.out)
    assert found.pop("manifest.json")
    del undamaged["manifest.json"]
    assert found == undamaged
