"""Byte-level BPE: Radford et al. 2019 (GPT-2), section 2.2.

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.tokenizer.kind import TokenizerKind, with_model
from bert_pipeline.tokenizer.special_tokens import reserved_entries

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bert_pipeline.tokenizer.config import TokenizeConfig
    from bert_pipeline.tokenizer.sample import Sample

BYTES = 256
WORD_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    r"| ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+"
    r"|\s+(?!\S)|\s+"
)
"""GPT-2's pattern, except that marks and joiners belong to the word that they stand in.

Scripts such as Devanagari, Thai and Khmer write vowels as combining marks (Unicode category M), at
which GPT-2's pattern ends a word. U+200C and U+200D stand within words of Persian and Hindi."""


def _new(config: TokenizeConfig) -> Tokenizer:
    """A pre-tokenizer for words of any script, with nothing learnt yet.

    A space is added at the start of a text: a word must have the same tokens there as within it.
    `ByteLevel` alone would also add one after a mask.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _learn(
    tokenizer: Tokenizer, sample: Sample, config: TokenizeConfig
) -> tuple[Tokenizer, dict[str, Any]]:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    reserved = reserved_entries(config)
    needed = len(reserved) + BYTES
    if config.vocab_size < needed:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size}: --kind byte-bpe needs at least {needed}, for "
            "the bytes and the special tokens."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=reserved,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.lines("learning merges"), trainer)
    # The trainer treats unused slots as special tokens; the finished tokenizer must not.
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokenizer = with_model(tokenizer, models.BPE(tokenizer.get_vocab(), merges))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {}


BYTE_BPE = TokenizerKind(
    name="byte-bpe",
    options=(),
    special_token_sets=("bert", "roberta"),
    new=_new,
    learn=_learn,
)
