"""`bertpipe embed`: vectors of texts, or of their tokens, from the hidden states of an encoder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.model.architectures import count_positions_of
from bert_pipeline.predict.batches import TokenRow, group_texts, make_batch, plan_batches
from bert_pipeline.predict.encode import TextEncoder
from bert_pipeline.predict.hidden_states import can_pad, make_encoder
from bert_pipeline.predict.load import check_vocabulary, load_auto_tokenizer, load_encoder
from bert_pipeline.predict.pooling import CLS, normalize, pool, select_layers
from bert_pipeline.predict.sentence_transformer import read_encoder_folder
from bert_pipeline.ragged import Array, Int64Array, expand, offsets_of

T = TypeVar("T")
NO_LIMIT = 1_000_000
"""A tokenizer without a maximum length has a larger number than this."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of consecutive texts."""

    vectors: Array
    """float32 `[texts, dimension]`, or those of the tokens of all texts, `[tokens, dimension]`."""
    offsets: Int64Array
    """Where the tokens of each text begin, and where the last ones end, `[texts + 1]`."""
    truncated: int
    """How many of the texts were longer than the model takes."""
    tokens: list[list[str]]
    """The tokens of each text, with special ones; no lists for vectors of texts."""
    spans: list[list[tuple[int, int]]]
    """Where each token begins and ends in its text; 0 and 0 for special tokens."""


class Embedder:
    """A model folder ready to make vectors: of this package, transformers or sentence-transformers.

    `pooling` is how: `mean` of the last hidden states of all tokens, special ones included; `cls`,
    that of the first token; `last4-concat`, the mean of the concatenated states of the last four
    layers. The default is that of a sentence-transformers folder, else `mean`. With `by_token` each
    token has a vector: what `mean` or `last4-concat` would average. With `normalized` vectors have
    length 1; the default is that of the folder.
    """

    def __init__(
        self,
        model: str | Path,
        pooling: str | None = None,
        *,
        by_token: bool = False,
        normalized: bool | None = None,
    ) -> None:
        settings = read_encoder_folder(Path(model))
        self.pooling = pooling or settings.pooling
        self.by_token = by_token
        if by_token and self.pooling == CLS:
            raise UsageError("--pooling cls: tokens have no such vector. Use mean or last4-concat.")
        self._normalized = settings.normalize if normalized is None else normalized
        self._tokenizer = load_auto_tokenizer(settings.folder)
        network = load_encoder(settings.folder)
        check_vocabulary(settings.folder, self._tokenizer, network)
        own = self._tokenizer.model_max_length
        limits = (settings.max_length, own if own < NO_LIMIT else None, count_positions_of(network))
        self.max_length = min((limit for limit in limits if limit), default=None)
        """The most tokens of a text; longer ones are truncated."""
        self._texts = TextEncoder(self._tokenizer, self.max_length)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = make_encoder(network.to(self._device).eval())
        (probe,) = self._texts.encode(["a"])
        self.dimension = self._compute([TokenRow(probe.ids, probe.segment_ids)]).shape[1]

    def embed(self, texts: Iterable[str]) -> Iterator[Embeddings]:
        """The vectors of the texts in order, those of up to `GROUP_TEXTS` at a time.

        A blank text has the vector of its special tokens, as in sentence-transformers.
        """
        return map(self._embed_group, group_texts(texts))

    def _embed_group(self, texts: Sequence[str]) -> Embeddings:
        encoded = self._texts.encode(texts)
        cuts = [self._texts.is_too_long(text.ids) for text in encoded]

        def cut(values: list[T], is_cut: bool) -> list[T]:
            return self._texts.cut(values) if is_cut else values

        rows = [
            TokenRow(cut(text.ids, is_cut), cut(text.segment_ids, is_cut))
            for text, is_cut in zip(encoded, cuts, strict=True)
        ]
        offsets = offsets_of(np.array([len(row.ids) for row in rows]))
        vectors = self._compute_all(rows, offsets)
        if not self.by_token:
            return Embeddings(vectors, offsets, sum(cuts), [], [])
        tokens = [self._tokenizer.convert_ids_to_tokens(row.ids) for row in rows]
        spans = [cut(text.spans(), is_cut) for text, is_cut in zip(encoded, cuts, strict=True)]
        return Embeddings(vectors, offsets, sum(cuts), tokens, spans)

    def _compute_all(self, rows: Sequence[TokenRow], offsets: Int64Array) -> Array:
        """The vectors of the rows, or of their tokens, in order; 0 for a row without tokens."""
        count = int(offsets[-1]) if self.by_token else len(rows)
        vectors = np.zeros((count, self.dimension), dtype=np.float32)
        for planned in plan_batches(rows, equal_lengths=not can_pad(self._encoder)):
            if numbers := [number for number in planned if rows[number].ids]:
                places = np.array(numbers)
                if self.by_token:
                    places = expand(offsets[places], np.diff(offsets)[places])
                vectors[places] = self._compute([rows[number] for number in numbers])
        return vectors

    @torch.inference_mode()
    def _compute(self, rows: Sequence[TokenRow]) -> Array:
        """The vectors of the rows of a batch, or of their tokens."""
        batch = make_batch(rows).to(self._device)
        vectors = select_layers(self._encoder.hidden_states(batch), self.pooling)
        if not self.by_token:
            vectors = pool(vectors, batch.cu_seqlens, self.pooling)
        if self._normalized:
            vectors = normalize(vectors)
        if not vectors.isfinite().all():
            raise BertpipeError("The model's hidden states are not finite. Check its config.json.")
        array: Array = vectors.float().cpu().numpy()
        return array
