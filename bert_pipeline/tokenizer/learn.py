"""How vocabularies are learnt: WordPiece and byte-level BPE, the same bytes whatever the number of threads."""

import json
import os
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import print_line
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.alphabet import (
    CONTINUED,
    FEWEST,
    Alphabet,
    choose_alphabet,
    count_characters,
)
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.sample import Sample, bound_sample
from bert_pipeline.tokenizer.special_tokens import (
    SPECIALS,
    mark_specials,
    reserve_entries,
    surround_texts,
)


def learn_vocabulary(
    config: TokenizeConfig, corpus: Manifest, some_text: Sequence[str]
) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer trained on the corpus, or a sample of it as large as `some_text` suggests, and figures about that.

    Raises `BertpipeError` when the text cannot fill the vocabulary, or its characters have no room in it.
    """
    # Read by the Rust side when its thread pool first starts.
    os.environ["RAYON_NUM_THREADS"] = str(config.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.workers > 1 else "false"
    new, learn = (
        (_new_wordpiece, _learn_wordpiece) if config.kind == "wordpiece" else (_new_bpe, _learn_bpe)
    )
    splitter = new(config)
    megabytes = config.sample_mb or bound_sample(splitter, some_text)
    sample = Sample(config.corpus, corpus, megabytes, config.seed, config.quiet)
    tokenizer, counts = learn(splitter, sample, config)
    size = tokenizer.get_vocab_size()
    if size < config.vocab_size:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size}: this corpus fills only {size}. Ask for {size} or fewer, lower "
            "--min-frequency, or give more text."
        )
    specials = SPECIALS[config.specials]
    mark_specials(tokenizer, specials)
    surround_texts(tokenizer, specials["cls"], specials["sep"])
    return tokenizer, counts | sample.to_json()


def _new_wordpiece(config: TokenizeConfig) -> Tokenizer:
    """BERT's normaliser and pre-tokeniser (the release's tokenization.py), with nothing learnt yet."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIALS[config.specials]["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.chinese_characters,
        strip_accents=config.strip_accents,
        lowercase=True if config.lowercase is None else config.lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _learn_wordpiece(
    tokenizer: Tokenizer, sample: Sample, config: TokenizeConfig
) -> tuple[Tokenizer, dict[str, Any]]:
    """WordPiece (Devlin et al. 2019).

    The trainer numbers characters in the order of a hash map, so ties between merges fall differently at every run.
    Handing it the alphabet as special tokens, sorted, fixes the numbers; the finished vocabulary then moves to a
    tokenizer that knows only the real special tokens.
    """
    characters, room = count_characters(sample, tokenizer), max(FEWEST, config.vocab_size // 2)
    alphabet = choose_alphabet(characters, tokenizer, config.alphabet_size, room)
    vocabulary = _learn_pieces(tokenizer, sample, alphabet, config)
    if (free := config.vocab_size - len(vocabulary)) and alphabet.is_cut:
        # Where every character is a word there are few pieces to learn: what they leave free is for more characters.
        alphabet = choose_alphabet(characters, tokenizer, config.alphabet_size, room + free)
        vocabulary = _learn_pieces(tokenizer, sample, alphabet, config)
    if alphabet.is_cut:
        _tell_unknown(alphabet, config)
    tokenizer = _with_model(
        tokenizer, models.WordPiece(vocabulary, unk_token=SPECIALS[config.specials]["unk"])
    )
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    return tokenizer, {
        "characters": len(alphabet.characters),
        "character_coverage": round(alphabet.coverage, 6),
    }


def _learn_pieces(
    tokenizer: Tokenizer, sample: Sample, alphabet: Alphabet, config: TokenizeConfig
) -> dict[str, int]:
    reserved = reserve_entries(config)
    if len(reserved) + len(alphabet.entries) > config.vocab_size:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size} has no room for the {len(alphabet.entries)} single characters of this "
            f"corpus beside {len(reserved)} special tokens and unused slots. Ask for a larger vocabulary, a smaller "
            "--alphabet-size, or --kind byte-bpe."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=reserved + alphabet.entries,
        # Both, or the trainer would cut its own alphabet, and between equally frequent characters at random.
        initial_alphabet=alphabet.characters,
        limit_alphabet=len(alphabet.characters),
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    learnt = _with_model(tokenizer, models.WordPiece())
    learnt.train_from_iterator(sample.lines("learning pieces"), trainer)
    return dict(sorted(learnt.get_vocab().items(), key=lambda item: item[1]))


def _new_bpe(config: TokenizeConfig) -> Tokenizer:
    """GPT-2's splitting into words, with nothing learnt yet.

    Every sentence begins as if after a space: sentences are encoded one by one, and a word must be the same piece at
    the start of a sentence and within it.
    """
    tokenizer = Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _learn_bpe(
    tokenizer: Tokenizer, sample: Sample, config: TokenizeConfig
) -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE (Radford et al. 2019, section 2.2)."""
    reserved = reserve_entries(config)
    if config.vocab_size < len(reserved) + 256:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size}: byte-bpe needs {len(reserved) + 256} for the bytes and special tokens "
            "alone."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=reserved,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.lines("learning pieces"), trainer)
    # To the trainer, unused slots were special tokens: the tokenizer must not know them as such.
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokenizer = _with_model(tokenizer, models.BPE(tokenizer.get_vocab(), merges))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {}


def _with_model(trained: Tokenizer, model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    return tokenizer


def _tell_unknown(alphabet: Alphabet, config: TokenizeConfig) -> None:
    print_line(
        f"tokenizer: --vocab-size {config.vocab_size} has room for {len(alphabet.characters):,} of the "
        f"{alphabet.known:,} characters; the others, {1 - alphabet.coverage:.2%} of the text, are unknown. A larger "
        "vocabulary holds more of them, --kind byte-bpe all.",
        quiet=config.quiet,
    )
