"""Which different words of a text become equal by a tokenizer's normalization."""

from collections import defaultdict

from tokenizers import Tokenizer

from bert_pipeline.config import flag
from bert_pipeline.progress import print_line
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.quality import MeasuredText

MERGING_OPTIONS = ("lowercase", "strip_accents", "clean_text")
"""Options that change letters."""
SHOWN = 3
"""Groups of merged words to show."""


def print_merged_words(tokenizer: Tokenizer, text: MeasuredText, config: TokenizeConfig) -> None:
    """Print the share of the distinct words that become equal to another one, with examples.

    Nothing is printed for a tokenizer that changes no letter.
    """
    options = [flag(option) for option in MERGING_OPTIONS if getattr(config, option)]
    cause = ", ".join(options) if config.existing is None else "its normalization"
    if not cause or tokenizer.normalizer is None:
        return
    counts = text.count_words()
    words_of: dict[str, list[str]] = defaultdict(list)
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        words_of[tokenizer.normalizer.normalize_str(word).strip()].append(word)
    merged = [words for words in words_of.values() if len(words) > 1]
    if not merged and config.existing is not None:
        return
    share = sum(map(len, merged)) / max(1, len(counts))
    # Words that differ in more than case first: they have different meanings.
    merged.sort(key=lambda words: len({word.casefold() for word in words}) == 1)
    examples = "; ".join(" = ".join(words[:SHOWN]) for words in merged[:SHOWN])
    print_line(
        f"  {cause}: {share:.1%} of the distinct words become equal to another one"
        + (f" ({examples})" if examples else ""),
        quiet=config.quiet,
    )
