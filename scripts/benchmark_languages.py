"""What the defaults do with text of several languages: `TEXTS/LANGUAGE/*.txt`, such as `hi/a.txt`.

Each language goes through a recipe that sets its source and language only. Columns: the language
that would be guessed; characters that the tokenizer changes or does not know; characters per token
of the three kinds (`--vocab-size` entries at most); sentences and their median length in
characters; the share of the text that reaches an example. With `--minutes`, a small model is
trained, and asked for the middle token of 40 sentences: the share of the letters of its answers
that are in the scripts of the text, and its held-out loss in bits per byte.
"""

import statistics
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from tokenizers import Tokenizer

from bert_pipeline import build_corpus, build_examples, pretrain, train_tokenizer
from bert_pipeline.corpus.sentences import split_sentences
from bert_pipeline.predict.fill_mask import MaskFiller
from bert_pipeline.progress import out
from bert_pipeline.storage.manifest import read_manifest
from bert_pipeline.storage.shards import iterate_rows
from bert_pipeline.tokenizer.kinds import KINDS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

QUESTIONS = 40
SMALL_MODEL = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2}


@app.command()
def languages(
    texts: Annotated[Path, typer.Argument(help="Folder with one folder of *.txt per language.")],
    vocab_size: Annotated[int, typer.Option(help="Vocabulary size.")] = 8000,
    minutes: Annotated[float, typer.Option(help="Minutes of training; 0 for none.")] = 0.0,
    keep: Annotated[Path | None, typer.Option(help="Folder for all files.")] = None,
) -> None:
    """Measure every language."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for folder in sorted(path for path in texts.iterdir() if path.is_dir()):
            rows.append(_measure(folder, (keep or Path(temporary)) / folder.name, vocab_size))
            if minutes:
                rows[-1] += _train((keep or Path(temporary)) / folder.name, minutes)
    header = ["language", "text", "guessed", "changed", "unknown", *KINDS, "sentences", "used"]
    header += ["in script", "bits/byte"] if minutes else []
    for line in [header, ["---"] * len(header), *rows]:  # as Markdown, for the pages
        out.print(f"| {' | '.join(line)} |", soft_wrap=True, markup=False)


def _measure(folder: Path, work: Path, vocab_size: int) -> list[str]:
    source = f"text:{folder}/*.txt"
    shared: dict[str, Any] = {"quiet": True, "overwrite": True}
    guessed = build_corpus(source=source, out=work / "guessed", **shared)
    corpus = build_corpus(source=source, language=folder.name, out=work / "corpus", **shared)
    figures = {}
    for kind in KINDS:
        made = train_tokenizer(
            corpus=work / "corpus", out=work / kind, kind=kind, vocab_size=vocab_size, **shared
        )
        figures[kind] = made.counts["quality"]
    documents = _read_documents(work / "corpus")
    sentences = [len(s) for text in documents for s in split_sentences(text, folder.name)]
    examples = build_examples(
        corpus=work / "corpus", tokenizer=work / "wordpiece", out=work / "examples", **shared
    )
    return [
        folder.name,
        f"{corpus.counts['bytes'] / 1e6:.2f} MB",
        ", ".join(list(guessed.counts["languages"])[:2]),
        f"{_share_changed(work / 'wordpiece', documents):.2%}",
        f"{max(f['unknown_characters'] for f in figures.values()):.2%}",
        *(f"{f['characters_per_token']:.2f}" for f in figures.values()),
        f"{len(sentences):,} × {statistics.median(sentences):.0f}",
        f"{examples.counts['train_used_rate']:.1%}",
    ]


def _read_documents(corpus: Path) -> list[str]:
    manifest = read_manifest(corpus, "corpus")
    return [text for (text,) in iterate_rows([corpus / name for name in manifest.files], ["text"])]


def _share_changed(folder: Path, documents: list[str]) -> float:
    """Share of the characters that the tokens, joined, do not have."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed = total = 0
    for text in documents:
        before = Counter("".join(text.split()))
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        after = Counter("".join(token.removeprefix("##") for token in tokens))
        changed += (before - after).total()
        total += before.total()
    return changed / total


def _train(work: Path, minutes: float) -> list[str]:
    manifest = pretrain(
        examples=work / "examples",
        tokenizer=work / "wordpiece",
        out=work / "pretrain",
        model=SMALL_MODEL | {"intermediate_size": 512, "max_position_embeddings": 128},
        max_minutes=minutes,
        batch_size=16,
        optimizer="muon",
        learning_rate=0.002,
        initialization="informed",
        dropout=0.0,
        nsp_weight=0.1,
        quiet=True,
        overwrite=True,
    )
    filler = MaskFiller(work / "pretrain")
    letters: Counter[str] = Counter()
    for text in _questions(work):
        for answer in filler.fill([text], 5):
            letters.update(_script(char) for char in answer["token_str"] if char.isalpha())
    text = "".join(_read_documents(work / "corpus"))
    expected = {
        script
        for script, count in Counter(_script(c) for c in text if c.isalpha()).items()
        if count > 0.05 * len(text)
    }
    share = sum(letters[script] for script in expected) / max(1, letters.total())
    question = _questions(work)[0]
    answers = [answer["token_str"] for answer in filler.fill([question], 5)]
    out.print(f"{work.name}: {question} → {', '.join(answers)}", markup=False)
    return [f"{share:.0%}", f"{manifest.counts['eval_bits_per_byte']:.3f}"]


def _questions(work: Path) -> list[str]:
    """Sentences with their middle token masked."""
    tokenizer = Tokenizer.from_file(str(work / "wordpiece" / "tokenizer.json"))
    found = []
    for text in _read_documents(work / "corpus"):
        for sentence in split_sentences(text, work.name):
            encoding = tokenizer.encode(sentence, add_special_tokens=False)
            if 8 <= len(encoding.ids) <= 60:
                start, end = encoding.offsets[len(encoding.ids) // 2]
                found.append(f"{sentence[:start]}[MASK]{sentence[end:]}")
                break
    return found[:: max(1, len(found) // QUESTIONS)][:QUESTIONS]


def _script(char: str) -> str:
    """The first word of the character's name, which is its script: `THAI`, `CJK`, `HANGUL`."""
    return unicodedata.name(char, "?").split()[0]


if __name__ == "__main__":
    app()
