"""The different words of a text, as a tokenizer's pre-tokenizer passes them to its model."""

from collections import Counter

from bert_pipeline.tokenizer.load import LoadedTokenizer
from bert_pipeline.tokenizer.prefix_space import set_prefix_space
from bert_pipeline.tokenizer.sample import Sample
from bert_pipeline.tokenizer.words import is_wordwise

MAX_PARTS = 200_000
"""Different parts of the text that are kept before they are split into words, to bound memory."""
WORD_BREAK = "\0"


class WordCounter:
    """Counts words: the parts of a text that repeat are normalized and split once."""

    def __init__(self, loaded: LoadedTokenizer) -> None:
        tokenizer, adds_space = set_prefix_space(loaded.tokenizer, "never")
        self._normalizer = tokenizer.normalizer
        self._pre_tokenizer = tokenizer.pre_tokenizer
        self._prefix = " " if adds_space else ""
        self._is_wordwise = is_wordwise(tokenizer)

    def count(self, sample: Sample) -> Counter[str]:
        """Occurrences of each word of the sample."""
        words: Counter[str] = Counter()
        parts: Counter[str] = Counter()
        for line in sample.lines("counting words"):
            text = self._prefix + line.strip()
            if self._is_wordwise:
                parts.update(text.replace(" ", WORD_BREAK + " ").split(WORD_BREAK))
            else:
                parts[text] += 1
            if len(parts) > MAX_PARTS:
                self._split(parts, words)
                parts.clear()
        self._split(parts, words)
        return words

    def _split(self, parts: Counter[str], words: Counter[str]) -> None:
        for part, count in parts.items():
            text = self._normalizer.normalize_str(part) if self._normalizer else part
            for word, _ in self._pre_tokenizer.pre_tokenize_str(text):
                words[word] += count
