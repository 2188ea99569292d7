"""Evaluation of a masked LM on plain text, in bits per byte: it compares across tokenizers."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_pipeline.corpus.read_texts import read_texts
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.counter_rng import make_key, random_bits
from bert_pipeline.examples.masking import MaskRule, draw_masks
from bert_pipeline.examples.rows import UnpaddedRows
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.predict.load import find_model
from bert_pipeline.pretraining.evaluation import ROWS_PER_BATCH, load_pretrained
from bert_pipeline.pretraining.text_batch import make_text_batch
from bert_pipeline.progress import Bar, bar, human_bytes
from bert_pipeline.ragged import Int32Array
from bert_pipeline.tokenizer.encode import SentenceEncoder
from bert_pipeline.tokenizer.load import LoadedTokenizer, SpecialIds, load_tokenizer

MASK_RATE = 0.15
MAX_LENGTH = 512
"""Tokens per row, unless the model has fewer positions."""
DOCUMENTS_AT_A_TIME = 256


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """Metrics of a model on a text, of whose tokens `MASK_RATE` are replaced by the mask token."""

    mlm_loss: float
    """Nats per masked token."""
    perplexity: float
    top1_accuracy: float
    masked_tokens: int
    tokens: int
    """Of the text, without special tokens."""
    bytes: int
    bits_per_byte: float
    """`mlm_loss` of all tokens of the text in bits, per UTF-8 byte."""

    def describe(self) -> list[tuple[str, str]]:
        """The metrics as lines for people."""
        return [
            ("bits per byte", f"{self.bits_per_byte:.3f}"),
            ("masked-LM loss", f"{self.mlm_loss:.3f} nats per token"),
            ("perplexity", f"{self.perplexity:.1f}"),
            ("top-1 accuracy", f"{self.top1_accuracy:.1%}"),
            ("measured on", f"{self.masked_tokens:,} masked tokens of {human_bytes(self.bytes)}"),
        ]


def evaluate_text(model: Path, source: str, *, quiet: bool = False) -> TextEvaluation:
    """Evaluate a model folder on a text file, or on a source of `bertpipe corpus`.

    Raises `BertpipeError` if there is no masked LM or no text.
    """
    folder = find_model(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_pretrained(folder).to(device)
    tokenizer = load_tokenizer(folder)
    length = min(MAX_LENGTH, count_positions(network.config) or MAX_LENGTH)
    documents = encode_documents(read_texts(source), tokenizer)
    with bar("evaluating", None, quiet=quiet) as progress:
        found = evaluate_documents(network, documents, tokenizer.special, length, progress)
    if not found.masked_tokens:
        raise BertpipeError(f"{source}: has no text to evaluate on.")
    return found


def encode_documents(
    documents: Iterable[str], tokenizer: LoadedTokenizer
) -> Iterator[tuple[Int32Array, int]]:
    """The ids of each document without special tokens, and its UTF-8 bytes."""
    encoder = SentenceEncoder(tokenizer, with_word_starts=False)
    remaining = iter(documents)
    while texts := list(islice(remaining, DOCUMENTS_AT_A_TIME)):
        encoded = encoder.encode([encoder.text_prefix + text for text in texts])
        bounds = np.cumsum(encoded.lengths)[:-1]
        for ids, text in zip(np.split(encoded.ids, bounds), texts, strict=True):
            yield ids, len(text.encode("utf-8", "surrogatepass"))


@torch.no_grad()
def evaluate_documents(
    network: Any,
    documents: Iterable[tuple[Int32Array, int]],
    special: SpecialIds,
    max_length: int,
    progress: Bar | None = None,
) -> TextEvaluation:
    """Evaluate a stock model on documents as `encode_documents` gives them.

    They are cut into rows of up to `max_length` tokens with `[CLS]` and `[SEP]`. The masked tokens
    are a fixed random choice. Without a document all metrics are NaN.
    """
    model = PretrainingModel(network).eval()
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    size = 0
    tokens = 0

    def rows() -> Iterator[Int32Array]:
        nonlocal size, tokens
        for ids, bytes_of_text in documents:
            size += bytes_of_text
            tokens += len(ids)
            step = max_length - 2
            yield from (ids[start : start + step] for start in range(0, len(ids), step))

    remaining = rows()
    first = 0
    while part := list(islice(remaining, ROWS_PER_BATCH)):
        batch = _mask(part, first, special, network.config.vocab_size).to(device)
        scores = model.score(batch)[0].float()
        labels = batch.masked_labels
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
        correct = (scores.argmax(1) == labels).sum()
        sums += torch.stack([loss.double(), correct.double(), loss.new_tensor(len(labels))])
        first += len(part)
        if progress:
            progress.advance(sum(map(len, part)))
    total, correct_count, masked = sums.tolist()
    mean = total / masked if masked else math.nan
    return TextEvaluation(
        mlm_loss=mean,
        perplexity=math.exp(min(mean, 700.0)),
        top1_accuracy=correct_count / masked if masked else math.nan,
        masked_tokens=int(masked),
        tokens=tokens,
        bytes=size,
        bits_per_byte=mean * tokens / max(1, size) / math.log(2),
    )


def _mask(
    parts: list[Int32Array], first: int, special: SpecialIds, vocab_size: int
) -> PretrainingBatch:
    """A batch of rows `first`, `first + 1`, ... with masked tokens."""
    # Rows with [CLS] and [SEP], end to end.
    ends = np.array([special.cls, special.sep], dtype=np.int32)
    tokens = np.concatenate([np.concatenate([ends[:1], part, ends[1:]]) for part in parts])
    lengths = np.array([len(part) + 2 for part in parts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_special = np.zeros(len(tokens), dtype=np.bool_)
    is_special[offsets[:-1]] = True
    is_special[offsets[1:] - 1] = True
    segments = np.zeros(len(tokens), dtype=np.int8)
    # Masks: all of them become the mask token, so that models compare that were trained with
    # other shares of random tokens.
    keys = random_bits(make_key("text evaluation"), np.arange(first, first + len(parts)))
    rule = MaskRule("token", MASK_RATE, len(tokens), 1.0, 0.0, special.mask, vocab_size)
    masks = draw_masks(UnpaddedRows(tokens, segments, is_special, None, offsets), keys, rule)
    index = np.repeat(offsets[:-1], np.diff(masks.offsets)) + masks.positions
    return make_text_batch(masks.tokens, offsets, index, masks.labels)
