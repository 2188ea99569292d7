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


def _new(config: TokenizeConfig) -> Tokenizer:
    """GPT-2's pre-tokenizer, with nothing learnt yet.

    A space is added before every sentence: sentences are encoded one by one, and a word must have
    the same tokens at the start of a sentence as within it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
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
