"""Masked LM without pairs: examples are filled with consecutive complete sentences.

Liu et al. 2019 (RoBERTa), section 4.2, DOC-SENTENCES and FULL-SENTENCES:
https://arxiv.org/abs/1907.11692
"""

from bisect import bisect_right

from bert_pipeline.examples.objective import DocumentBatch, Objective, PackedSentences


def plan_full_sentences(batch: DocumentBatch) -> PackedSentences:
    """Fill each example with consecutive sentences, up to its target length.

    With `across_documents` (FULL-SENTENCES) an example continues with the next document after a
    separator; otherwise (DOC-SENTENCES) it ends with its document. A sentence longer than an
    example is split, so that no token is lost.
    """
    packed = PackedSentences()
    bounds = batch.bounds
    target = 0  # length of the current example
    left = 0  # tokens that still fit into it
    for first, last in batch.documents:
        if not batch.across_documents:
            left = 0
        start = bounds[first]
        stop = bounds[last]
        while start < stop:
            if left <= 0:
                target = left = batch.draw_target()
                packed.first_run.append(len(packed.start))
            fits = bounds[bisect_right(bounds, start + left, first, last + 1) - 1]
            if fits <= start and left < target:
                left = 0  # the next sentence does not fit into the rest of this example
                continue
            fits = fits if fits > start else start + left
            packed.start.append(start)
            packed.stop.append(fits)
            left -= fits - start
            start = fits
            if start < stop:
                left = 0
        left -= 1  # for the separator before the next document
    return packed


MASKED_LM = Objective(name="mlm", has_pairs=False, plan=plan_full_sentences)
