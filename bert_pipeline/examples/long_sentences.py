"""Text with few sentence ends: sentences that no example can hold are divided into parts.

The BERT release makes one example of such a sentence, and truncation keeps only its middle. So of a
text without full stops, such as Thai or verse, nearly everything would be lost. Only documents in
which a pair of average sentences is longer than an example are changed, and of these only sentences
that are longer than an example: all others give the examples of the original algorithm.
"""

import numpy as np

from bert_pipeline.ragged import Int64Array, expand, offsets_of

PARTS_PER_EXAMPLE = 4
"""A part has at most this fraction of an example, about as much as a sentence of usual length."""


def divide_long_sentences(
    sentences: Int64Array, documents: Int64Array, max_tokens: int
) -> tuple[Int64Array, Int64Array]:
    """Divide sentences of more than `max_tokens` ids into parts of equal length.

    Takes and returns the bounds of sentences in the ids, and of documents in the sentences.
    """
    counts = np.diff(documents)
    changed = 2 * np.diff(sentences[documents]) > max_tokens * counts
    if not changed.any():
        return sentences, documents
    lengths = np.diff(sentences)
    is_divided = (lengths > max_tokens) & np.repeat(changed, counts)
    parts = np.where(is_divided, -(-lengths * PARTS_PER_EXAMPLE // max_tokens), 1)
    number = expand(np.zeros_like(parts), parts)  # of each part in its sentence
    start = np.repeat(sentences[:-1], parts)
    start += np.repeat(lengths, parts) * number // np.repeat(parts, parts)
    return np.append(start, sentences[-1]), offsets_of(parts)[documents]
