"""New entries for an existing tokenizer: `bertpipe tokenize --extend`."""

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import bar, print_line
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.choose_entries import choose_entries, find_split_words
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.extensible import ExtensibleModel, extensible_model
from bert_pipeline.tokenizer.learn import set_threads
from bert_pipeline.tokenizer.load import LoadedTokenizer, count_ids
from bert_pipeline.tokenizer.quality import MeasuredText, show_token
from bert_pipeline.tokenizer.sample import Sample, choose_sample_mb
from bert_pipeline.tokenizer.save import use_examples_layout
from bert_pipeline.tokenizer.word_counts import WordCounter

SHOWN_ENTRIES = 10
"""New entries to show."""


def extend_tokenizer(
    config: TokenizeConfig, corpus: Manifest, text: MeasuredText, loaded: LoadedTokenizer
) -> tuple[Tokenizer, dict[str, str], dict[str, Any]]:
    """Add the entries that save the most tokens of the corpus, at most `config.add_vocab`.

    Returns the extended tokenizer, its special tokens by role, and figures for the manifest; those
    of the old tokenizer are measured on `text`. Raises `BertpipeError` for a tokenizer of a type
    that takes no new entries.
    """
    set_threads(config.workers)
    model = extensible_model(loaded.tokenizer, str(config.extend))
    old, _ = use_examples_layout(loaded)
    before = text.measure(old, loaded.special, str(config.extend))
    extended, sample = _add_entries(config, corpus, text, loaded, model)
    tokenizer, specials = use_examples_layout(extended)
    first_id = loaded.vocab_size
    counts = {
        "new_entries": extended.vocab_size - first_id,
        "first_new_entries": _show_first(tokenizer, first_id),
        **_measure_change(tokenizer, first_id, text),
        "before": asdict(before),
    }
    return tokenizer, specials, sample.to_json() | counts


def _show_first(tokenizer: Tokenizer, first_id: int) -> list[str]:
    """The first new entries, without those that are a part of a character."""
    entries = (show_token(tokenizer, number) for number in range(first_id, count_ids(tokenizer)))
    return list(islice((entry for entry in entries if "\ufffd" not in entry), SHOWN_ENTRIES))


def print_new_entries(counts: dict[str, Any], *, quiet: bool) -> None:
    """Print how much of the text has new entries, and the first of them."""
    if counts["new_entries"] == 0:
        return
    print_line(
        f"  new entries in {counts['changed_words']:.1%} of the words, with "
        f"{counts['changed_characters']:.1%} of the characters\n"
        f"  the first new entries: {' '.join(counts['first_new_entries'])}",
        quiet=quiet,
    )


def _add_entries(
    config: TokenizeConfig,
    corpus: Manifest,
    text: MeasuredText,
    loaded: LoadedTokenizer,
    model: ExtensibleModel,
) -> tuple[LoadedTokenizer, Sample]:
    limit = config.add_vocab or 0
    megabytes = config.sample_mb or choose_sample_mb(loaded.tokenizer, text.paragraphs)
    sample = Sample(config.corpus, corpus, megabytes, config.seed, config.quiet)
    needed = model.needed(loaded.tokenizer)
    if len(needed) > limit:
        raise BertpipeError(
            f"{config.extend}: {len(needed):,} characters occur within longer entries only, and "
            f"need entries of their own first. Set a larger --add-vocab than {limit:,}."
        )
    counts = WordCounter(loaded).count(sample)
    with bar("learning entries", limit, quiet=config.quiet) as progress:
        entries = choose_entries(
            model,
            find_split_words(model, counts),
            needed=needed,
            limit=limit,
            min_frequency=config.min_frequency,
            progress=progress,
        )
    if len(entries) < limit:
        print_line(
            f"tokenizer: {len(entries):,} new entries instead of {limit:,} (--add-vocab): the text "
            "has no more that save tokens.",
            quiet=config.quiet,
        )
    settings = json.loads(loaded.tokenizer.to_str()) | {"model": model.extend(entries)}
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    return replace(loaded, tokenizer=tokenizer, vocab_size=model.first_id + len(entries)), sample


def _measure_change(tokenizer: Tokenizer, first_id: int, text: MeasuredText) -> dict[str, float]:
    """The share of the words in which new entries are, and of the characters in these words."""
    counts = Counter(word for paragraph in text.paragraphs for word in paragraph.split())
    words = list(counts)
    # With a space before it, as within a sentence.
    encodings = tokenizer.encode_batch_fast(
        [" " + word for word in words], add_special_tokens=False
    )
    is_changed = np.array([max(each.ids, default=0) >= first_id for each in encodings])
    occurrences = np.array([counts[word] for word in words])
    characters = occurrences * np.array([len(word) for word in words])
    return {
        "changed_words": round(float(np.average(is_changed, weights=occurrences)), 6),
        "changed_characters": round(float(np.average(is_changed, weights=characters)), 6),
    }
