"""WordPiece, the tokenizer of BERT: Devlin et al. 2019, section 3 (https://aclanthology.org/N19-1423).

The same corpus gives the same bytes for any number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import print_line
from bert_pipeline.tokenizer.alphabet import (
    CONTINUATION_PREFIX,
    MIN_CHARACTERS,
    Alphabet,
    choose_alphabet,
    count_characters,
)
from bert_pipeline.tokenizer.kind import TokenizerKind, with_model
from bert_pipeline.tokenizer.special_tokens import SPECIALS, reserved_entries

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bert_pipeline.tokenizer.config import TokenizeConfig
    from bert_pipeline.tokenizer.sample import Sample


def _new(config: TokenizeConfig) -> Tokenizer:
    """BERT's normalizer and pre-tokenizer, with nothing learnt yet.

    The normalizer of the release, with all of its steps, changes letters in most scripts: removing
    accents merges words of Thai, Hindi, Vietnamese and German, and cleaning removes U+200C.
    https://github.com/google-research/bert/blob/master/tokenization.py
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIALS[config.specials]["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=config.clean_text,
        handle_chinese_chars=config.chinese_characters,
        strip_accents=config.strip_accents,
        lowercase=config.lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _learn(
    tokenizer: Tokenizer, sample: Sample, config: TokenizeConfig
) -> tuple[Tokenizer, dict[str, Any]]:
    """Choose the alphabet, then learn the vocabulary.

    The trainer numbers characters in the order of a hash map, so ties between merges are broken
    differently in every run. Sorted characters given as special tokens have fixed numbers. The
    finished vocabulary is then moved to a tokenizer with the real special tokens only.
    """
    from tokenizers import decoders, models

    characters = count_characters(sample, tokenizer)
    max_entries = max(MIN_CHARACTERS, config.vocab_size // 2)
    alphabet = choose_alphabet(characters, tokenizer, config.alphabet_size, max_entries)
    vocabulary = _learn_vocabulary(tokenizer, sample, alphabet, config)
    if (free := config.vocab_size - len(vocabulary)) and alphabet.is_cut:
        # Where every character is a word, there are few longer entries to learn: use the entries
        # that are still free for more characters.
        max_entries += free
        alphabet = choose_alphabet(characters, tokenizer, config.alphabet_size, max_entries)
        vocabulary = _learn_vocabulary(tokenizer, sample, alphabet, config)
    if alphabet.is_cut:
        _warn_of_unknown_characters(alphabet, config)
    model = models.WordPiece(
        vocabulary,
        unk_token=SPECIALS[config.specials]["unk"],
        max_input_chars_per_word=config.max_word_characters,
    )
    tokenizer = with_model(tokenizer, model)
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION_PREFIX)
    return tokenizer, {
        "characters": len(alphabet.characters),
        "character_coverage": round(alphabet.coverage, 6),
    }


def _learn_vocabulary(
    tokenizer: Tokenizer, sample: Sample, alphabet: Alphabet, config: TokenizeConfig
) -> dict[str, int]:
    """Entries and their ids, ascending."""
    from tokenizers import models, trainers

    reserved = reserved_entries(config)
    if len(reserved) + len(alphabet.entries) > config.vocab_size:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size} is too small: the corpus has "
            f"{len(alphabet.entries)} single characters, and {len(reserved)} entries are special "
            "tokens and unused slots. Set a larger --vocab-size, a smaller --alphabet-size, or "
            "--kind byte-bpe."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=reserved + alphabet.entries,
        # Both are needed: the trainer would otherwise limit its own alphabet, and choose between
        # equally frequent characters at random.
        initial_alphabet=alphabet.characters,
        limit_alphabet=len(alphabet.characters),
        continuing_subword_prefix=CONTINUATION_PREFIX,
        show_progress=False,
    )
    learnt = with_model(tokenizer, models.WordPiece())
    learnt.train_from_iterator(sample.lines("learning entries"), trainer)
    return dict(sorted(learnt.get_vocab().items(), key=lambda item: item[1]))


def _warn_of_unknown_characters(alphabet: Alphabet, config: TokenizeConfig) -> None:
    print_line(
        f"tokenizer: --vocab-size {config.vocab_size} is too small for all characters: "
        f"{len(alphabet.characters):,} of {alphabet.known:,} have an entry.\n"
        f"  The others, {1 - alphabet.coverage:.2%} of the text, are unknown tokens.\n"
        "  Set a larger --vocab-size, or --kind byte-bpe, which has no unknown tokens.",
        quiet=config.quiet,
    )


WORDPIECE = TokenizerKind(
    name="wordpiece",
    options=(
        *("strip_accents", "clean_text", "chinese_characters", "max_word_characters"),
        *("alphabet_size", "id_layout"),
    ),
    special_token_sets=("bert",),
    new=_new,
    learn=_learn,
)
