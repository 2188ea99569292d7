"""Which text is held out for validation: documents, and the ends of long documents.

Usually whole documents are held out, and their share of the text is near `--validation-fraction`.
In a corpus of few documents it may be far from it: two of five books are much more than 2%. If
whole documents would hold out less than half or more than twice the fraction, every document that
alone is longer than that share of the corpus is divided at a sentence end: its last sentences, with
the given fraction of its tokens, are held out, and the rest is for training. The other documents
are held out whole, as usual. So each split has at most one part of a document, and no text is in
both.
"""

from dataclasses import dataclass

import numpy as np

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.splits import Splits
from bert_pipeline.examples.token_store import NO_TAILS, TokenStore
from bert_pipeline.progress import count_of
from bert_pipeline.ragged import Int64Array

TOLERANCE = 2
"""Whole documents are held out if their share is at most this factor from the fraction."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is held out: a number of whole documents, and the tails of long ones."""

    documents: int
    tails: Int64Array
    """As in `TokenStore`."""


def choose_held_out(store: TokenStore, config: ExamplesConfig) -> HeldOut:
    """What is held out of an undivided store: a pure function of the settings and the corpus.

    Raises `BertpipeError` when there are too few documents for the objective.
    """
    fraction = config.validation_fraction
    count = len(store)
    needed = OBJECTIVES[config.objective].min_documents
    whole = max(needed, round(count * fraction)) if fraction else 0
    is_enough = count - whole >= needed
    if is_enough and (not fraction or _is_near(store, whole, config)):
        return HeldOut(whole, NO_TAILS)
    tails = _find_tails(store, fraction) if fraction else NO_TAILS
    others = count - len(tails)
    rest = max(needed - len(tails), round(others * fraction))
    if len(tails) and rest <= others and count - rest >= needed:
        return HeldOut(rest, tails)
    if is_enough:
        return HeldOut(whole, NO_TAILS)
    raise BertpipeError(_explain_too_few(count, needed, config))


def _is_near(store: TokenStore, documents: int, config: ExamplesConfig) -> bool:
    """Whether this many held-out documents have about the wanted share of the tokens."""
    splits = Splits(len(store), documents, config.seed)
    held_out = 0
    total = 0
    for piece in range(len(store.first) - 1):
        first, end = store.first[piece : piece + 2].tolist()
        tokens = store.count_document_tokens(piece)
        held_out += int(tokens[splits.members("validation", first, end) - first].sum())
        total += int(tokens.sum())
    wanted = config.validation_fraction * total
    return wanted / TOLERANCE <= held_out <= wanted * TOLERANCE


def _find_tails(store: TokenStore, fraction: float) -> Int64Array:
    """The tails of all documents that are longer than the held-out share of the corpus.

    A document without a sentence end near enough has none.
    """
    pieces = range(len(store.first) - 1)
    total = sum(int(store.count_document_tokens(piece).sum()) for piece in pieces)
    tails = []
    for piece in pieces:
        tokens = store.count_document_tokens(piece)
        for local in np.flatnonzero(tokens > fraction * total).tolist():
            ends = store.read_sentence_bounds(piece, local)
            cut = ends[np.abs(ends - (ends[-1] - fraction * tokens[local])).argmin()]
            if ends[0] < cut < ends[-1]:
                tails.append((store.first[piece] + local, cut))
    return np.array(tails, dtype=np.int64).reshape(-1, 2)


def _explain_too_few(documents: int, needed: int, config: ExamplesConfig) -> str:
    splits = f"{needed} for training"
    solutions = ["Add more documents"]
    if config.validation_fraction:
        splits += f" and {needed} for validation"
        solutions.append("set --validation-fraction 0")
    if needed > 1:
        solutions.append("use --objective mlm, which needs no second document")
    return (
        f"{config.corpus}: has {count_of(documents, 'document')} with sentences, but "
        f"{config.objective} needs {splits}. {', or '.join(solutions)}."
    )
