"""Unigram language model: Kudo 2018 (https://aclanthology.org/P18-1007), as in SentencePiece.

It needs no words, so it suits text without spaces between words. SentencePiece
(https://github.com/google/sentencepiece) learns the entries, because the trainer in `tokenizers`
gives other entries at every run.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.tokenizer.alphabet import CHARACTER_COVERAGE
from bert_pipeline.tokenizer.kind import TokenizerKind, with_model
from bert_pipeline.tokenizer.special_tokens import SPECIALS, reserved_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

    from bert_pipeline.tokenizer.config import TokenizeConfig
    from bert_pipeline.tokenizer.sample import Sample

THREADS = 16
"""Threads of SentencePiece, on any number of cores: sums of floats depend on their number."""
RESERVED_SCORE = -10_000.0
"""Log-probability of special tokens: so low that no text is split into them."""


def _new(config: TokenizeConfig) -> Tokenizer:
    """SentencePiece's pre-tokenizer, with nothing learnt yet: a space becomes `▁`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def _learn(
    tokenizer: Tokenizer, sample: Sample, config: TokenizeConfig
) -> tuple[Tokenizer, dict[str, Any]]:
    """The entries with their log-probabilities, after the special tokens."""
    from tokenizers import decoders, models

    reserved = reserved_entries(config)
    learnt = _learn_entries(tokenizer, sample, config.vocab_size - len(reserved))
    # Text may contain the name of a special token; an id has one entry only.
    taken = frozenset(reserved)
    entries = [(name, RESERVED_SCORE) for name in reserved]
    entries += [entry for entry in learnt if entry[0] not in taken]
    unknown = reserved.index(SPECIALS[config.specials]["unk"])
    tokenizer = with_model(tokenizer, models.Unigram(entries, unknown, byte_fallback=False))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, {}


def _learn_entries(tokenizer: Tokenizer, sample: Sample, size: int) -> list[tuple[str, float]]:
    """At most `size` entries, most probable first."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_normalized_lines(tokenizer, sample),
            model_writer=model,
            model_type="unigram",
            vocab_size=size + 1,  # its unknown token is not taken
            hard_vocab_limit=False,
            character_coverage=CHARACTER_COVERAGE,
            num_threads=THREADS,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            bos_id=-1,
            eos_id=-1,
            minloglevel=3,
        )
    except RuntimeError as error:
        # The message begins with the source line of the C++ check.
        detail = str(error).rpartition("] ")[2].split("\n")[0]
        raise BertpipeError(
            f"--kind unigram with {size} entries besides the special tokens: {detail} Set another "
            "--vocab-size, or add more text."
        ) from None
    found = SentencePieceProcessor(model_proto=model.getvalue())
    return [
        (found.id_to_piece(number), found.get_score(number))
        for number in range(1, found.get_piece_size())
    ]


def _normalized_lines(tokenizer: Tokenizer, sample: Sample) -> Iterator[str]:
    for line in sample.lines("learning entries"):
        text = tokenizer.normalizer.normalize_str(line) if tokenizer.normalizer else line
        # SentencePiece reads NUL as the end of a line.
        if stripped := text.replace("\0", " ").strip():
            yield stripped


UNIGRAM = TokenizerKind(
    name="unigram",
    options=(),
    special_token_sets=("bert", "roberta"),
    new=_new,
    learn=_learn,
)
