"""`bertpipe fill-mask`: prints what fills the masks of many texts, as it is computed."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bert_pipeline.corpus.cleaning.cleaner import join_surrogates
from bert_pipeline.predict.fill_mask import MaskFiller, format_candidates, join_masks
from bert_pipeline.progress import bar, count_of, err, out, print_line

BAR_AFTER_S = 2.0
SHOWN_CHARS = 500
"""Of a text above its table."""


def fill_lines(
    model: Path,
    texts: Iterable[str],
    name: str,
    top_k: int,
    targets: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Print a table for each text, or in JSON one line for each: what the pipeline returns.

    A blank text has no table, and in JSON an empty list. `name` and its number stand for a text in
    error messages.
    """
    given: deque[str] = deque()  # those that are read, but not printed yet

    def read() -> Iterator[str]:
        for text in texts:
            given.append(join_surrogates(text))
            yield text

    results = MaskFiller(model).fill_each(read(), top_k, targets, name)
    printed = blank = 0
    # The results themselves show the progress in a terminal.
    with bar("filling masks", None, quiet=out.is_terminal, delay_s=BAR_AFTER_S) as progress:
        for masks in results:
            text = given.popleft()
            blank += not masks
            if as_json:
                print_line(json.dumps(join_masks(masks), ensure_ascii=False))
            elif masks:
                print_line("\n".join([_shorten(text), *format_candidates(masks)]))
            printed += 1
            if not given:  # all results of a batch come at once
                progress.move_to(printed)
    if blank and not as_json:
        err.print(f"{count_of(blank, 'blank text')} without masks.", markup=False)


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]} …"
