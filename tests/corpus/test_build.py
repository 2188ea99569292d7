"""`bertpipe corpus`: rows, shards and the manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.config import build_config
from bert_pipeline.corpus.build import build_corpus
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.sources.files import FileSource
from bert_pipeline.errors import BertpipeError, SourceUnreachable, UsageError
from bert_pipeline.storage.manifest import Manifest, read_manifest
from tests.helpers.corpora import (
    big_rows,
    build,
    shard_bytes,
    texts_of,
    write_sources,
)
from tests.helpers.text import invent_documents, write_jsonl


@pytest.mark.integration
def test_bytes_do_not_depend_on_workers(tmp_path: Path):
    sources = write_sources(tmp_path)
    made = []
    for workers in (1, 3):
        out = tmp_path / f"corpus-{workers}"
        build_corpus(
            CorpusConfig(out=out, source=sources, workers=workers, quiet=True, shard_mb=1e-6)
        )
        made.append(shard_bytes(out))
    assert made[0] == made[1]
    assert len(made[0]) > 8


def test_rows_and_manifest_match_the_input(tmp_path: Path):
    sources = write_sources(tmp_path)
    config = CorpusConfig(
        out=tmp_path / "corpus",
        source=sources,
        workers=1,
        quiet=True,
        language="tlh",
        shard_mb=1e-6,
    )
    build_corpus(config)
    manifest: Manifest = read_manifest(config.out, "corpus")
    table = pa.concat_tables(pq.read_table(config.out / name) for name in sorted(manifest.files))
    texts = invent_documents(7, 60)
    paragraph_lines = "\n".join(texts[:5])
    assert sorted(table["text"].to_pylist()) == sorted([*texts, paragraph_lines])
    assert set(table["language"].to_pylist()) == {"tlh"}
    assert set(table["source"].to_pylist()) == set(sources)
    assert len(set(table["id"].to_pylist())) == 61
    assert "3.jsonl#0" in table["id"].to_pylist()
    assert manifest.counts["documents"] == 61
    assert manifest.counts["bytes"] == sum(len(text.encode()) for text in table["text"].to_pylist())
    assert manifest.counts["taken"][sources[0]]["files"] == 6
    assert table.schema.names == ["id", "text", "source", "language"]


def test_small_files_share_a_shard(tmp_path: Path):
    for number, size in enumerate([100, 100, 5000, 100, 100]):
        write_jsonl(tmp_path / f"{number}.jsonl", ["x" * size])
    config = CorpusConfig(
        out=tmp_path / "corpus",
        source=(f"jsonl:{tmp_path}/*.jsonl",),
        workers=1,
        quiet=True,
        shard_mb=0.001,
    )
    build_corpus(config)
    assert [pq.read_metadata(path).num_rows for path in sorted(config.out.glob("*.parquet"))] == [
        2,
        1,
        2,
    ]


def test_files_are_read_in_order_of_names(tmp_path: Path):
    for name in ("b", "c", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    os.utime(tmp_path / "a.jsonl", (9e9, 9e9))
    config = CorpusConfig(
        out=tmp_path / "corpus", source=(f"jsonl:{tmp_path}/*.jsonl",), workers=1, quiet=True
    )
    build_corpus(config)
    assert texts_of(config.out) == ["a", "b", "c"]


@pytest.mark.parametrize("pattern", ["~nobody-of-that-name/*.txt", "~/absent-*.txt"])
def test_tilde_in_pattern_is_expanded(pattern: str, tmp_path: Path):
    with pytest.raises(BertpipeError, match="matches no file"):
        build(tmp_path / "out", f"text:{pattern}")


options_of_runs = st.fixed_dictionaries(
    {
        "clean": st.sampled_from([("basic",), ("none",), ("basic,exact",), ("exact,near",)]),
        "max_documents": st.sampled_from([None, 7, 90]),
        "max_bytes": st.sampled_from([None, 2500]),
        "shuffle_buffer": st.sampled_from([None, 5]),
        "shard_mb": st.sampled_from([0.0005, 0.002, 1.0]),
    }
)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(options_of_runs)
def test_bytes_do_not_depend_on_workers_for_any_options(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
):
    folder = tmp_path_factory.mktemp("runs")
    source, _ = big_rows(folder, files=6, rows=20)
    build(folder / "one", source, workers=1, **options)
    build(folder / "three", source, workers=3, **options)
    assert shard_bytes(folder / "one").keys() == shard_bytes(folder / "three").keys()
    for name, content in shard_bytes(folder / "one").items():
        assert (folder / "three" / name).read_bytes() == content
    assert not (folder / "one" / ".parts").exists()


@pytest.mark.parametrize("option", ["files", "revision", "repository", "split"])
def test_hub_options_without_hub_source_are_rejected(option: str):
    with pytest.raises(UsageError, match=f"--{option}: applies only to sources on the Hub"):
        build_config(CorpusConfig, {"out": Path("x"), "source": ("text:*",), option: "x"})


def test_shard_numbers_have_no_gap_when_a_part_is_removed(tmp_path: Path):
    rows = [f"Text {n}, long enough to fill a part of its own {'x' * 900}" for n in range(6)]
    write_jsonl(tmp_path / "a.jsonl", [rows[0], rows[1], rows[1], rows[1], rows[2], rows[0]])
    found, _ = build(
        tmp_path / "out", f"jsonl:{tmp_path}/a.jsonl", clean=("exact",), shard_mb=0.0005
    )
    assert found == rows[:3]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        f"{n:05}.parquet" for n in range(3)
    ]


def test_finished_corpus_is_accepted_when_its_source_does_not_respond(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write_jsonl(tmp_path / "a.jsonl", ["One."])
    config = CorpusConfig(out=tmp_path / "out", source=(f"jsonl:{tmp_path}/a.jsonl",), workers=1)
    build_corpus(config)

    def fail(self: FileSource) -> str:
        raise SourceUnreachable("timeout")

    monkeypatch.setattr(FileSource, "fingerprint", fail)
    build_corpus(config)
    assert "is complete; its sources do not respond" in capsys.readouterr().out
    with pytest.raises(SourceUnreachable):
        build_corpus(config.model_copy(update={"language": ("fa",)}))
