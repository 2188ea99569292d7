"""`bertpipe examples --show N`: examples as people read them."""

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

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
STYLES = {"hidden": "bold green", "replaced": "bold red", "kept": "bold yellow"}
LEGEND = "To be predicted: [word] behind the mask, [other←word] replaced by another token, [word=] left as it is."


@dataclass(frozen=True, slots=True)
class Shown:
    """One row without padding: the original ids, what the model sees, and which positions it has to predict."""

    original: Sequence[int]
    tokens: Sequence[int]
    label: bool | None
    predicted: frozenset[int]


def show_examples(config: ExamplesConfig, manifest: Manifest, loaded: LoadedTokenizer) -> None:
    """Print `config.show` training examples, taken from as many of the shards as there are."""
    if not config.show or config.quiet:
        return
    decode = _make_decoder(loaded.tokenizer)
    dynamic = DynamicMasks.from_manifest(manifest, config.seed)
    objective = OBJECTIVES[config.objective]
    out.print(LEGEND, style="dim", markup=False)
    for turn, (name, number, row) in enumerate(_choose(config, manifest)):
        shown = _read(row, turn, dynamic)
        meaning = "" if shown.label is None else f"; {objective.describe_label(shown.label)}"
        counts = f"{len(shown.tokens)} tokens, {len(shown.predicted)} to predict"
        out.print(f"\n{name}, row {number}: {counts}{meaning}", style="bold", markup=False)
        for line in _draw(shown, decode, loaded):
            out.print(line)


def _choose(
    config: ExamplesConfig, manifest: Manifest
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Rows by the name of their file and their number in it: one row of each of several files in turn."""
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


def _read(row: dict[str, Any], number: int, dynamic: DynamicMasks | None) -> Shown:
    length = sum(segment >= 0 for segment in row["segment_ids"])
    tokens = original = np.array(row["tokens"][:length], dtype=np.int32)
    positions = np.array(row["masked_positions"], dtype=np.int64)
    if dynamic is None:
        original = tokens.copy()
        original[positions] = row["masked_labels"]
    else:
        starts = row.get(WORD_STARTS.name)
        flags = None if starts is None else np.array(starts[:length], dtype=np.bool_)
        masks = dynamic.draw(
            tokens, flags, np.array([0, length]), np.array([number]), np.array([0])
        )
        tokens, positions = masks.tokens, masks.positions.astype(np.int64)
    return Shown(
        original.tolist(), tokens.tolist(), row["is_random_next"], frozenset(positions.tolist())
    )


def _draw(shown: Shown, decode: Decode, loaded: LoadedTokenizer) -> Iterator[Text]:
    """A line for each run of tokens between special ones."""
    special = {loaded.special.cls, loaded.special.sep}
    ordinary = [position for position, token in enumerate(shown.original) if token not in special]
    # Runs are parted by a special token, which leaves a gap.
    runs = [
        [at for _, at in run]
        for _, run in groupby(enumerate(ordinary), key=lambda pair: pair[1] - pair[0])
    ]
    for number, run in enumerate(runs):
        name = "" if shown.label is None else "AB"[min(number, 1)] + "  "
        yield Text(f"  {name}").append_text(_draw_run(shown, run, decode, loaded.special.mask))


def _draw_run(shown: Shown, run: Sequence[int], decode: Decode, mask: int) -> Text:
    text, read = Text(), 0
    ids = [shown.original[position] for position in run]
    for (kind, word), group in groupby(range(len(run)), key=lambda at: _kind(shown, run[at], mask)):
        end = list(group)[-1] + 1
        # By what decoding one more piece adds: pieces alone do not tell whether there is a space before them.
        shown_so_far = decode(ids[:end])
        added, read = shown_so_far[read:], len(shown_so_far)
        added = added if text else added.lstrip()
        if kind is None:
            text.append(added)
            continue
        bare = added.strip()
        text.append(added[: len(added) - len(added.lstrip())])
        other = decode([word]).strip() if kind == "replaced" else ""
        text.append(
            {"hidden": f"[{bare}]", "replaced": f"[{other}←{bare}]", "kept": f"[{bare}=]"}[kind],
            STYLES[kind],
        )
    return text


def _kind(shown: Shown, position: int, mask: int) -> tuple[str | None, int]:
    """What was done to a token; replaced ones are each a kind of their own, told apart by what stands there now."""
    if position not in shown.predicted:
        return None, 0
    token = shown.tokens[position]
    if token == mask:
        return "hidden", 0
    return ("kept", 0) if token == shown.original[position] else ("replaced", token)


def _make_decoder(tokenizer: Tokenizer) -> Decode:
    copy = Tokenizer.from_str(tokenizer.to_str())
    if type(copy.decoder).__name__ == "WordPiece":
        # Its clean-up joins marks to the words before them, which would move text that was shown already.
        copy.decoder = decoders.WordPiece(cleanup=False)
    # A document's control characters are not for the terminal to obey.
    return lambda ids: CONTROL.sub("·", copy.decode(list(ids), skip_special_tokens=False))
