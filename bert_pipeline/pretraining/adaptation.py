"""What continued pretraining gains on the new text, and loses on text like that of before."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from bert_pipeline.corpus.read_texts import read_texts
from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.vocabulary import VocabularySources
from bert_pipeline.predict.load import load_with_new_heads
from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.pretraining.evaluation import load_pretrained
from bert_pipeline.pretraining.init_from import StartingModel
from bert_pipeline.pretraining.text_evaluation import encode_documents, evaluate_documents
from bert_pipeline.progress import Bar, bar, print_table
from bert_pipeline.ragged import Int32Array, offsets_of
from bert_pipeline.tokenizer.load import LoadedTokenizer

HELD_OUT = "held-out text of this run"
SAMPLE_TOKENS = 65_536
"""Tokens of the held-out examples that are measured."""
OLD_TEXT_BYTES = 400_000
"""Bytes of each old text that are measured."""

Encoded = tuple[Int32Array, int]
"""The ids of a document without special tokens, and its UTF-8 bytes."""


def read_old_texts(sources: Sequence[str]) -> dict[str, list[str]]:
    """The first documents of each source, up to `OLD_TEXT_BYTES`.

    Raises `BertpipeError` for a source that cannot be read or has no text.
    """
    found = {}
    for source in sources:
        texts: list[str] = []
        size = 0
        for text in read_texts(source):
            texts.append(text)
            size += len(text.encode("utf-8", "surrogatepass"))
            if size >= OLD_TEXT_BYTES:
                break
        if not size:
            raise BertpipeError(f"--old-text {source}: has no text.")
        found[source] = texts
    return found


@dataclass(frozen=True, slots=True)
class _Model:
    """A model to measure, with its own tokenizer."""

    network: Any
    tokenizer: LoadedTokenizer

    def bits_per_byte(self, documents: Iterable[Encoded], length: int, progress: Bar) -> float:
        positions = count_positions(self.network.config)
        limit = min(length, positions or length)
        special = self.tokenizer.special
        return evaluate_documents(self.network, documents, special, limit, progress).bits_per_byte


@dataclass(frozen=True, slots=True)
class Adaptation:
    """The texts on which a run's starting model and its result are compared."""

    start: StartingModel
    tokenizer: LoadedTokenizer
    """That of the result."""
    max_length: int
    held_out: Examples | None
    old_texts: Mapping[str, Sequence[str]]

    def measure(
        self, folder: Path, device: torch.device, *, quiet: bool
    ) -> dict[str, dict[str, float]]:
        """Bits per byte by text, `before` and `after`, of the starting model and that in `folder`.

        Masked tokens of the held-out examples and of the old texts, each model with its own
        tokenizer: an entry that the starting model lacks is split as its tokenizer splits it.
        """
        found: dict[str, dict[str, float]] = {}
        sources = self.start.vocabulary_sources(self.tokenizer)
        with bar("comparing with the starting model", None, quiet=quiet, counted=False) as progress:
            for when in ("before", "after"):
                is_start = when == "before"
                model = self._load_start(device) if is_start else self._load_result(folder, device)
                for name, documents in self._encode(sources if is_start else None, model.tokenizer):
                    value = model.bits_per_byte(documents, self.max_length, progress)
                    found.setdefault(name, {})[when] = value
        return found

    def _load_start(self, device: torch.device) -> _Model:
        network, _ = load_with_new_heads(self.start.folder, AutoModelForMaskedLM)
        return _Model(network.to(device), self.start.tokenizer)

    def _load_result(self, folder: Path, device: torch.device) -> _Model:
        return _Model(load_pretrained(folder).to(device), self.tokenizer)

    def _encode(
        self, sources: VocabularySources | None, tokenizer: LoadedTokenizer
    ) -> Iterator[tuple[str, Iterable[Encoded]]]:
        if self.held_out is not None and self.held_out.bytes_per_token is not None:
            yield HELD_OUT, self._held_out_documents(self.held_out, sources)
        for name, texts in self.old_texts.items():
            yield name, encode_documents(texts, tokenizer)

    def _held_out_documents(
        self, examples: Examples, sources: VocabularySources | None
    ) -> Iterator[Encoded]:
        """The segments of held-out examples, each as a document."""
        tokens, offsets = examples.sample_unmasked(SAMPLE_TOKENS)
        special = self.tokenizer.special
        is_text = ~np.isin(tokens, [special.cls, special.sep, special.pad])
        # A segment begins at each token after a special one, or after the end of a row.
        begins = is_text & ~np.concatenate([[False], is_text[:-1]])
        begins[offsets[:-1]] |= is_text[offsets[:-1]]
        bounds = offsets_of(np.diff(np.append(np.flatnonzero(begins[is_text]), is_text.sum())))
        ids = tokens[is_text]
        assert examples.bytes_per_token is not None
        for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            segment = ids[first:end]
            size = round(len(segment) * examples.bytes_per_token)
            yield (segment if sources is None else _replace(segment, sources)), size


def _replace(ids: Int32Array, sources: VocabularySources) -> Int32Array:
    return np.array([old for number in ids.tolist() for old in sources[number]], dtype=np.int32)


def print_adaptation(found: Mapping[str, Mapping[str, float]], *, quiet: bool) -> None:
    """Print a table of bits per byte before and after."""
    rows = [
        [
            name,
            f"{values['before']:.3f}",
            f"{values['after']:.3f}",
            f"{values['after'] / values['before'] - 1:+.1%}",
        ]
        for name, values in found.items()
    ]
    title = "Bits per byte, lower is better"
    print_table(title, ["", "before", "after", "change"], rows, quiet=quiet)
