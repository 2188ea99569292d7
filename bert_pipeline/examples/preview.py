"""`bertpipe examples --show N`: examples as text."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text
from tokenizers import Tokenizer, decoders

from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.examples.dynamic_masking import DynamicMasks
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.schema import WORD_STARTS
from bert_pipeline.progress import out
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.storage.shards import count_rows, iterate_columns
from bert_pipeline.tokenizer.load import LoadedTokenizer

Decode = Callable[[Sequence[int]], str]

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
STYLES = {"masked": "bold green", "random": "bold red", "kept": "bold yellow"}
LEGEND = "To predict: [word] masked, [other←word] replaced by a random token, [word=] unchanged."


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row without padding."""

    original: Sequence[int]
    """Ids before masking."""
    tokens: Sequence[int]
    """Ids that the model gets."""
    label: bool | None
    predicted: frozenset[int]
    """Positions to predict."""


def show_examples(config: ExamplesConfig, manifest: Manifest, loaded: LoadedTokenizer) -> None:
    """Print `config.show` training examples, from as many shards as possible."""
    if not config.show or config.quiet:
        return
    decode = _make_decoder(loaded.tokenizer)
    dynamic = DynamicMasks.from_manifest(manifest, config.seed)
    objective = OBJECTIVES[config.objective]
    out.print(LEGEND, style="dim", markup=False)
    for turn, (name, number, columns) in enumerate(_choose_rows(config, manifest)):
        row = _read_row(columns, turn, dynamic)
        meaning = "" if row.label is None else f"; {objective.describe_label(row.label)}"
        counts = f"{len(row.tokens)} tokens, {len(row.predicted)} to predict"
        out.print(f"\n{name}, row {number}: {counts}{meaning}", style="bold", markup=False)
        for line in _format_row(row, decode, loaded):
            out.print(line)


def _choose_rows(
    config: ExamplesConfig, manifest: Manifest
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """File name, row number and columns of some rows, from several files in turn."""
    names = [
        name
        for name in manifest.files
        if name.startswith("train-") and count_rows(config.out / name)
    ]
    names = names[:: max(1, len(names) // config.show)]
    readers = [(name, enumerate(iterate_columns(config.out / name))) for name in names]
    left = config.show
    while readers and left:
        for reader in readers[:left]:
            name, rows = reader
            if (found := next(rows, None)) is None:
                readers.remove(reader)
            else:
                left -= 1
                yield name, *found


def _read_row(columns: dict[str, Any], number: int, dynamic: DynamicMasks | None) -> PreviewRow:
    length = sum(segment >= 0 for segment in columns["segment_ids"])
    tokens = original = np.array(columns["tokens"][:length], dtype=np.int32)
    positions = np.array(columns["masked_positions"], dtype=np.int64)
    if dynamic is None:
        original = tokens.copy()
        original[positions] = columns["masked_labels"]
    else:
        word_starts = None
        if WORD_STARTS.name in columns:
            word_starts = np.array(columns[WORD_STARTS.name][:length], dtype=np.bool_)
        offsets = np.array([0, length])
        masks = dynamic.draw(tokens, word_starts, offsets, np.array([number]), np.array([0]))
        tokens = masks.tokens
        positions = masks.positions.astype(np.int64)
    return PreviewRow(
        original=original.tolist(),
        tokens=tokens.tolist(),
        label=columns["is_random_next"],
        predicted=frozenset(positions.tolist()),
    )


def _format_row(row: PreviewRow, decode: Decode, loaded: LoadedTokenizer) -> Iterator[Text]:
    """One line for each segment."""
    special = {loaded.special.cls, loaded.special.sep}
    ordinary = [position for position, token in enumerate(row.original) if token not in special]
    # Consecutive positions form a segment: the special token between segments leaves a gap.
    segments = [
        [position for _, position in group]
        for _, group in groupby(enumerate(ordinary), key=lambda pair: pair[1] - pair[0])
    ]
    for number, segment in enumerate(segments):
        name = "" if row.label is None else "AB"[min(number, 1)] + "  "
        text = _format_segment(row, segment, decode, loaded.special.mask)
        yield Text(f"  {name}").append_text(text)


def _format_segment(row: PreviewRow, segment: Sequence[int], decode: Decode, mask: int) -> Text:
    text = Text()
    ids = [row.original[position] for position in segment]
    decoded_length = 0
    groups = groupby(range(len(segment)), key=lambda at: _replacement(row, segment[at], mask))
    for (kind, replacement), group in groups:
        end = list(group)[-1] + 1
        # Show what each further token adds to the decoded text: whether there is a space before a
        # token cannot be seen from the token alone.
        decoded = decode(ids[:end])
        added = decoded[decoded_length:]
        decoded_length = len(decoded)
        added = added if text else added.lstrip()
        if kind is None:
            text.append(added)
            continue
        bare = added.strip()
        text.append(added[: len(added) - len(added.lstrip())])
        other = decode([replacement]).strip() if kind == "random" else ""
        marked = {"masked": f"[{bare}]", "random": f"[{other}←{bare}]", "kept": f"[{bare}=]"}
        text.append(marked[kind], STYLES[kind])
    return text


def _replacement(row: PreviewRow, position: int, mask: int) -> tuple[str | None, int]:
    """How a token was replaced, and by which id if by a random one; consecutive equals merge."""
    if position not in row.predicted:
        return None, 0
    token = row.tokens[position]
    if token == mask:
        return "masked", 0
    if token == row.original[position]:
        return "kept", 0
    return "random", token


def _make_decoder(tokenizer: Tokenizer) -> Decode:
    copy = Tokenizer.from_str(tokenizer.to_str())
    if type(copy.decoder).__name__ == "WordPiece":
        # The clean-up joins punctuation to the word before it, so that text shown already changes.
        copy.decoder = decoders.WordPiece(cleanup=False)
    # Control characters of a document could change the state of the terminal.
    return lambda ids: CONTROL_CHARACTERS.sub(
        "·", copy.decode(list(ids), skip_special_tokens=False)
    )
