"""`bertpipe tokenize`: train WordPiece or byte-level BPE, and save what `AutoTokenizer.from_pretrained` loads."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_pipeline.artifact import Manifest, describe_input, explain_full_disk, read_manifest, workspace
from bert_pipeline.errors import BertpipeError
from bert_pipeline.progress import bar, human_bytes, say
from bert_pipeline.shards import iterate_rows
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.load import SPECIAL_TOKENS, STAGE

SPECIALS = list(SPECIAL_TOKENS.values())
CONTINUED = "##"


def train_tokenizer(config: TokenizeConfig) -> Manifest:
    """Write a Hugging Face tokenizer folder to `config.out`; the same corpus gives the same bytes.

    Raises `BertpipeError` when the corpus cannot fill the vocabulary.
    """
    corpus = read_manifest(config.corpus, "corpus")
    inputs = {"corpus": describe_input(config.out, config.corpus, corpus)}
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            say(f"tokenizer: already complete in {config.out}", quiet=config.quiet)
            return work.finished
        # Read by the Rust side when its thread pool first starts.
        os.environ["RAYON_NUM_THREADS"] = str(config.workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.workers > 1 else "false"
        sample = Sample([config.corpus / name for name in corpus.files], corpus.counts["bytes"], config)
        tokenizer = train_wordpiece(sample, config) if config.kind == "wordpiece" else train_byte_bpe(sample, config)
        with explain_full_disk(work.folder):
            save_pretrained(tokenizer, work.folder)
        counts = {"vocab_size": tokenizer.get_vocab_size(), "documents": sample.documents, "bytes": sample.bytes}
        files = [work.folder / "tokenizer.json", work.folder / "tokenizer_config.json"]
        manifest = work.finish(counts, files)
    say(
        f"tokenizer: {config.kind}, {counts['vocab_size']:,} entries, learnt from {sample.documents:,} documents "
        f"({human_bytes(sample.bytes)} of {human_bytes(corpus.counts['bytes'])}) → {config.out}",
        quiet=config.quiet,
    )
    return manifest


class Sample:
    """The paragraphs to learn from: all of the corpus, or documents drawn at random up to `sample_mb`."""

    def __init__(self, shards: list[Path], total_bytes: int, config: TokenizeConfig) -> None:
        self.shards, self.total_bytes, self.config = shards, total_bytes, config
        self.share = min(1.0, config.sample_mb * 1e6 / max(1, total_bytes))
        self.documents = self.bytes = 0

    def paragraphs(self, title: str) -> Iterator[str]:
        """The same paragraphs at every call, with a progress bar."""
        import numpy as np

        draw = np.random.default_rng(self.config.seed)
        self.documents = self.bytes = 0
        with bar(title, self.total_bytes, quiet=self.config.quiet, counted=False) as progress:
            for (text,) in iterate_rows(self.shards, ["text"]):
                size = len(text.encode())
                progress.advance(size)
                if self.share == 1.0 or draw.random() < self.share:
                    self.documents += 1
                    self.bytes += size
                    yield from text.split("\n")
        if not self.documents:
            raise BertpipeError(f"--sample-mb {self.config.sample_mb:g} drew no document at all; raise it.")


def train_wordpiece(sample: Sample, config: TokenizeConfig) -> Tokenizer:
    """WordPiece with BERT's normaliser and pre-tokeniser (Devlin et al. 2019; the release's tokenization.py).

    The trainer numbers characters in the order of a hash map, so ties between merges fall differently at every run.
    Handing it the alphabet as special tokens, sorted, fixes the numbers; the finished vocabulary then moves to a
    tokenizer that knows only the real special tokens.
    """
    lowercase = True if config.lowercase is None else config.lowercase
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.chinese_characters,
        strip_accents=config.strip_accents,
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = _frequent_characters(sample, tokenizer, config.alphabet_size)
    alphabet = [*characters, *(CONTINUED + char for char in characters if _continues(tokenizer, char))]
    if len(SPECIALS) + len(alphabet) > config.vocab_size:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size} has no room for the {len(alphabet)} single characters of this corpus. "
            "Ask for a larger vocabulary, a smaller --alphabet-size, or --kind byte-bpe."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIALS + alphabet,
        limit_alphabet=len(characters),
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.paragraphs("learning pieces"), trainer)
    vocabulary = dict(sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))
    _check_filled(vocabulary, config)
    tokenizer = _rebuild(tokenizer, models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    return _finish(tokenizer)


def train_byte_bpe(sample: Sample, config: TokenizeConfig) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) with BERT's special tokens.

    Every sentence begins as if after a space: sentences are encoded one by one, and a word must be the same piece at
    the start of a sentence and within it.
    """
    tokenizer = Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    if config.vocab_size < len(SPECIALS) + 256:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size}: byte-bpe needs {len(SPECIALS) + 256} for the bytes alone."
        )
    tokenizer.train_from_iterator(sample.paragraphs("learning pieces"), trainer)
    _check_filled(tokenizer.get_vocab(), config)
    return _finish(tokenizer)


def save_pretrained(tokenizer: Tokenizer, folder: Path) -> None:
    """Save for `AutoTokenizer`, with the input names that BERT's segments need."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
    )
    wrapped.save_pretrained(folder)


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    """Mark the special tokens and put `[CLS] A [SEP] B [SEP]` around what is encoded."""
    # The mask swallows the space before it, as a word piece with its space would.
    mask = AddedToken(SPECIAL_TOKENS["mask"], lstrip=True, normalized=False, special=True)
    tokenizer.add_special_tokens([*(s for s in SPECIALS if s != SPECIAL_TOKENS["mask"]), mask])
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


def _rebuild(trained: Tokenizer, model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    return tokenizer


def _frequent_characters(sample: Sample, tokenizer: Tokenizer, limit: int) -> list[str]:
    """The corpus's most frequent characters, as the normaliser leaves them, sorted; at most `limit`."""
    counted: Counter[str] = Counter()
    for paragraph in sample.paragraphs("counting characters"):
        counted.update(paragraph)
    normal: Counter[str] = Counter()
    for char, count in counted.items():
        for result in tokenizer.normalizer.normalize_str(char):
            if not result.isspace():
                normal[result] += count
    ranked = sorted(normal, key=lambda char: (-normal[char], char))
    # The trainer cuts at the same limit but breaks ties at random: never let the cut fall between equals.
    while limit < len(ranked) and limit > 0 and normal[ranked[limit - 1]] == normal[ranked[limit]]:
        limit -= 1
    return sorted(ranked[:limit])


def _continues(tokenizer: Tokenizer, char: str) -> bool:
    return len(tokenizer.pre_tokenizer.pre_tokenize_str("a" + char)) == 1


def _check_filled(vocabulary: Iterable[str], config: TokenizeConfig) -> None:
    size = len(list(vocabulary))
    if size < config.vocab_size:
        raise BertpipeError(
            f"--vocab-size {config.vocab_size}: this corpus fills only {size}. Ask for {size} or fewer, lower "
            "--min-frequency, or give more text."
        )
