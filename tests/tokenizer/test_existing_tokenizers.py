"""Existing tokenizers: from folders and from the Hub; the result encodes as transformers does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import JsonValue
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bert_pipeline.config import build_config
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.build import build_examples
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.pretrain import pretrain
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import find_tokenizer, load_tokenizer
from bert_pipeline.tokenizer.train import train_tokenizer
from tests.helpers.local_hub import LocalHub

TEXTS = ("Ba na, fe mi do!", "[MASK] ba[MASK]na [SEP]", "ÉCLAIR fe\u0301 x", "")
NO_CODE = 'raise SystemExit("run")'


def take(out: Path, corpus: Path, name: str | Path, **options: Any) -> Path:
    train_tokenizer(
        TokenizeConfig(
            **{
                "out": out,
                "corpus": corpus,
                "workers": 1,
                "quiet": True,
                "tokenizer": str(name),
                **options,
            }
        )
    )
    return out


def vocabulary(folder: Path) -> str:
    entries = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return "".join(entry + "\n" for entry in sorted(entries, key=entries.__getitem__))


@pytest.fixture
def plain_bert(tmp_path: Path, wordpiece_folder: Path) -> Path:
    """A folder as in old repositories: vocab.txt, and config.json with the model type."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "vocab.txt").write_text(vocabulary(wordpiece_folder), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def write_foreign(folder: Path, vocab: dict[str, int], **specials: str) -> Path:
    """A tokenizer that knows the word `ba` and has no unknown token."""
    tokenizer = Tokenizer(models.BPE({**vocab, "b": 30, "a": 31}, [("b", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    return folder


def test_existing_vocab_txt_encodes_as_transformers_does(
    tmp_path: Path, plain_bert: Path, corpus_folder: Path
):
    out = take(tmp_path / "t", corpus_folder, plain_bert)
    theirs = AutoTokenizer.from_pretrained(plain_bert)
    ours = AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    pair = ours(*TEXTS[:2])
    assert pair["input_ids"] == theirs(*TEXTS[:2])["input_ids"]
    assert pair["token_type_ids"] == theirs(*TEXTS[:2])["token_type_ids"]
    loaded = load_tokenizer(out)
    plain = load_tokenizer(plain_bert)
    assert (loaded.special, loaded.vocab_size) == (plain.special, plain.vocab_size)
    assert (
        read_manifest(out, "tokenize").inputs["tokenizer"].fingerprint == plain.manifest.fingerprint
    )


@pytest.mark.integration
def test_existing_tokenizer_folder_is_used_for_examples_and_model(
    tmp_path: Path, byte_bpe_folder: Path, corpus_folder: Path
):
    # RoBERTa's own layout has two separators between segments; examples have one.
    theirs = Tokenizer.from_file(str(byte_bpe_folder / "tokenizer.json"))
    cls = ("[CLS]", theirs.token_to_id("[CLS]"))
    sep = ("[SEP]", theirs.token_to_id("[SEP]"))
    theirs.post_processor = processors.RobertaProcessing(sep, cls)
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=theirs, **names).save_pretrained(tmp_path / "theirs")
    made = []
    for number, folder in enumerate((tmp_path / "theirs", byte_bpe_folder)):
        config = ExamplesConfig(
            out=tmp_path / f"examples-{number}",
            corpus=corpus_folder,
            tokenizer=folder,
            max_seq_length=32,
            dupe_factor=1,
            workers=1,
            quiet=True,
        )
        build_examples(config)
        made.append([path.read_bytes() for path in sorted(config.out.glob("*.parquet"))])
    assert made[0] == made[1], "the same vocabulary gives the same examples"
    shape: dict[str, JsonValue] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    pretrain(
        PretrainConfig(
            out=tmp_path / "run",
            examples=tmp_path / "examples-0",
            tokenizer=tmp_path / "theirs",
            max_steps=2,
            batch_size=4,
            model=shape | {"intermediate_size": 16, "max_position_embeddings": 40},
            threads=1,
            quiet=True,
        )
    )
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert saved.model_max_length == 40
    pair = saved("Ba.", "Ba.")
    row = pq.read_table(tmp_path / "examples-0" / "train-00000.parquet").to_pylist()[0]
    cls_id = cls[1]
    sep_id = sep[1]
    assert [row["tokens"].count(token) for token in (cls_id, sep_id)] == [1, 2]
    assert [pair["input_ids"].count(token) for token in (cls_id, sep_id)] == [1, 2]
    assert pair["token_type_ids"] == sorted(pair["token_type_ids"])
    assert set(pair["token_type_ids"]) == set(row["segment_ids"]) == {0, 1}


def test_case_of_vocab_txt_without_config_is_detected_from_entries(
    tmp_path: Path, plain_bert: Path
):
    (plain_bert / "config.json").unlink()
    assert (
        load_tokenizer(plain_bert).tokenizer.encode("BANA").ids
        == load_tokenizer(plain_bert).tokenizer.encode("bana").ids
    )
    with (plain_bert / "vocab.txt").open("a") as file:
        file.write("BANA\n")
    cased = load_tokenizer(plain_bert)
    assert cased.tokenizer.encode("BANA", add_special_tokens=False).ids == [cased.vocab_size - 1]


def test_own_tokenizer_folder_is_copied_unchanged(
    tmp_path: Path, byte_bpe_folder: Path, corpus_folder: Path
):
    out = take(tmp_path / "t", corpus_folder, byte_bpe_folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (byte_bpe_folder / name).read_bytes()


def test_changed_existing_tokenizer_is_rejected_and_unchanged_one_skipped(
    tmp_path: Path, plain_bert: Path, corpus_folder: Path
):
    out = take(tmp_path / "t", corpus_folder, plain_bert)
    before = (out / "tokenizer.json").stat().st_mtime_ns
    take(out, corpus_folder, plain_bert)
    assert (out / "tokenizer.json").stat().st_mtime_ns == before
    with (plain_bert / "vocab.txt").open("a") as file:
        file.write("newword\n")
    with pytest.raises(BertpipeError, match="tokenizer: its content changed"):
        take(out, corpus_folder, plain_bert)


def test_missing_special_tokens_are_named_in_error(tmp_path: Path, corpus_folder: Path):
    folder = write_foreign(
        tmp_path / "gpt", {"<|end|>": 0, "ba": 1}, unk_token="<|end|>", eos_token="<|end|>"
    )
    with pytest.raises(BertpipeError, match="no pad and no cls and no sep and no mask token"):
        take(tmp_path / "t", corpus_folder, folder)


def test_vocabulary_with_id_gaps_and_no_unknown_token(tmp_path: Path, corpus_folder: Path):
    vocab = {"<p>": 0, "<c>": 1, "<s>": 2, "<m>": 9, "ba": 20}
    folder = write_foreign(
        tmp_path / "f", vocab, pad_token="<p>", cls_token="<c>", sep_token="<s>", mask_token="<m>"
    )
    out = take(tmp_path / "t", corpus_folder, folder)
    loaded = load_tokenizer(out)
    assert (loaded.vocab_size, loaded.special.unk, loaded.special.mask) == (32, None, 9)
    assert AutoTokenizer.from_pretrained(out)("ba", "ba")["input_ids"] == [1, 20, 2, 20, 2]
    assert read_manifest(out, "tokenize").counts["quality"]["unknown_rate"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"tokenizer": "x/y", "kind": "wordpiece", "vocab_size": 300},
            "excludes --kind, --vocab-size",
        ),
        ({"tokenizer": "x/y", "sample_mb": 3}, "excludes --sample-mb"),
        ({"revision": "main"}, "--revision"),
        (
            {"kind": "wordpiece", "specials": "roberta"},
            "--specials roberta requires --kind byte-bpe",
        ),
        ({"kind": "byte-bpe", "id_layout": "original"}, "--id-layout requires --kind wordpiece"),
        (
            {"id_layout": "original", "unused": 98},
            "--unused 98: --id-layout original requires at least 99",
        ),
    ],
)
def test_conflicting_options_give_a_one_line_error(options: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said) as caught:
        build_config(TokenizeConfig, {"out": "o", "corpus": "c", **options})
    assert "\n" not in str(caught.value)


def test_missing_folder_is_not_looked_up_on_the_hub(tmp_path: Path, wordpiece_folder: Path):
    for name in (tmp_path / "none", "./none", "a/b/c"):
        with pytest.raises(UsageError, match="no such folder"):
            find_tokenizer(name)
    assert (
        find_tokenizer(wordpiece_folder)
        == find_tokenizer(str(wordpiece_folder))
        == wordpiece_folder
    )
    with pytest.raises(UsageError, match="--revision"):
        find_tokenizer(wordpiece_folder, "main")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        BertpipeError, match=r"empty: no tokenizer found\. Expected tokenizer\.json"
    ):
        load_tokenizer(tmp_path / "empty")


# The Hub


@pytest.fixture
def hub(tmp_path: Path, plain_bert: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as server:
        files: dict[str, bytes | str] = {
            path.name: path.read_bytes() for path in plain_bert.iterdir()
        }
        server.add("a/bert", {**files, "model.safetensors": b"weights", "code.py": NO_CODE})
        server.add("a/bert", {**files, "vocab.txt": files["vocab.txt"] + b"newword\n"}, "v2")  # type: ignore[operator]
        config = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}
        server.add("a/code", {"tokenizer_config.json": json.dumps(config), "code.py": NO_CODE})
        yield server


def bertpipe(
    hub: LocalHub, home: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_secret" if hub.tokens else "",
    }
    return subprocess.run(
        [sys.executable, "-m", "bert_pipeline", "tokenize", *map(str, arguments)],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.integration
def test_hub_tokenizer_is_downloaded(tmp_path: Path, hub: LocalHub, corpus_folder: Path):
    out = tmp_path / "t"
    given = ["--corpus", corpus_folder, "--tokenizer", "a/bert", "--out", out]
    done = bertpipe(hub, tmp_path / "hf", *given)
    assert done.returncode == 0, done.stderr
    taken = {"repository": "a/bert", "commit": hub.commits("a/bert")[0].sha}
    assert read_manifest(out, "tokenize").counts["taken"] == taken
    fetched = {r.path.rpartition("/")[2] for r in hub.log if "/resolve/" in r.path}
    assert fetched == {"config.json", "vocab.txt"}


@pytest.mark.slow
def test_hub_tokenizer_of_a_revision_is_extended(
    tmp_path: Path, hub: LocalHub, corpus_folder: Path
):
    out = tmp_path / "t"
    given = ["--extend", "a/bert", "--revision", "v2", "--add-vocab", 5]
    done = bertpipe(hub, tmp_path / "hf", "--corpus", corpus_folder, "--out", out, *given)
    assert done.returncode == 0, done.stderr
    assert "a/bert at " in done.stdout
    vocab = AutoTokenizer.from_pretrained(out).get_vocab()
    assert len(vocab) == vocab["newword"] + 6
    again = bertpipe(hub, tmp_path / "hf", "--corpus", corpus_folder, "--out", out, *given)
    assert "already complete" in again.stdout


@pytest.mark.slow
def test_hub_tokenizer_with_retries_cache_and_no_network(
    tmp_path: Path, hub: LocalHub, plain_bert: Path, corpus_folder: Path
):
    asked = ["--corpus", corpus_folder, "--tokenizer", "a/bert", "--max-wait", 20]
    hub.plant("status", "/api/models/a/bert", status=503)
    hub.plant("reset", "/resolve/.*/vocab.txt")
    done = bertpipe(hub, tmp_path / "hf", *asked, "--out", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert "503" in done.stderr
    ours = AutoTokenizer.from_pretrained(tmp_path / "t")
    theirs = AutoTokenizer.from_pretrained(plain_bert)
    assert [ours(text)["input_ids"] for text in TEXTS] == [
        theirs(text)["input_ids"] for text in TEXTS
    ]
    fetched = {
        request.path.rpartition("/")[2] for request in hub.log if "/resolve/" in request.path
    }
    assert fetched == {"config.json", "vocab.txt"}
    commit = hub.commits("a/bert")[0].sha
    assert read_manifest(tmp_path / "t", "tokenize").counts["taken"] == {
        "repository": "a/bert",
        "commit": commit,
    }

    silent = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    brief = [*asked[:-1], 0.5]
    cached = bertpipe(hub, tmp_path / "hf", *brief, "--out", tmp_path / "again", **silent)
    assert cached.returncode == 0, cached.stderr
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (
        tmp_path / "t" / "tokenizer.json"
    ).read_bytes()
    complete = bertpipe(hub, tmp_path / "no-cache", *brief, "--out", tmp_path / "t", **silent)
    assert complete.returncode == 0, complete.stderr
    assert "already complete" in complete.stdout
    nothing = bertpipe(hub, tmp_path / "no-cache", *brief, "--out", tmp_path / "u", **silent)
    assert nothing.returncode == 1
    assert "--max-wait 0.5" in nothing.stderr
    assert "Traceback" not in nothing.stderr

    shutil.move(hub.root / "a" / "bert@v2" / "vocab.txt", hub.root / "a" / "bert" / "vocab.txt")
    changed = bertpipe(hub, tmp_path / "hf", *asked, "--out", tmp_path / "t")
    assert changed.returncode == 1
    assert "tokenizer: its content changed" in changed.stderr


@pytest.mark.slow
def test_hub_errors_are_one_line_and_do_not_leak_the_token(
    tmp_path: Path, hub: LocalHub, corpus_folder: Path
):
    hub.tokens = {"hf_secret"}
    for arguments, said in (
        (["a/none"], "a/none: no such model"),
        (["a/bert", "--revision", "v9"], "--revision"),
        (["a/code"], "without running its code"),
    ):
        done = bertpipe(
            hub,
            tmp_path / "hf",
            "--corpus",
            corpus_folder,
            "--out",
            tmp_path / "t",
            "--tokenizer",
            *arguments,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert "hf_secret" not in done.stderr + done.stdout
    done = bertpipe(
        hub,
        tmp_path / "hf",
        "--corpus",
        corpus_folder,
        "--out",
        tmp_path / "t",
        "--tokenizer",
        "a/bert",
        "--revision",
        "v2",
    )
    assert done.returncode == 0, done.stderr
    assert "newword" in AutoTokenizer.from_pretrained(tmp_path / "t").get_vocab()
