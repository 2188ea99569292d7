"""Options of `bertpipe tokenize`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bert_pipeline.config import Choice, OneOrMany, StageConfig, available_cores, flag, flags
from bert_pipeline.tokenizer.kinds import KINDS
from bert_pipeline.tokenizer.special_tokens import ORIGINAL_UNUSED, SPECIALS

KIND_OPTIONS = tuple(option for kind in KINDS.values() for option in kind.options)
"""Options that only some kinds have."""
LEARNING_OPTIONS = ("min_frequency", "sample_mb")
"""Options for training that also apply to new entries of an existing tokenizer."""
TRAINING_OPTIONS = (
    *("kind", "vocab_size", "specials", "unused", "lowercase", *KIND_OPTIONS),
    *LEARNING_OPTIONS,
)
"""Options for training a tokenizer; not allowed with an existing one."""


class TokenizeConfig(StageConfig):
    """Train a tokenizer on a corpus, or take or extend an existing one."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "corpus",
        "workers",
        "compare",
        "max_wait",
    }

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    kind: Annotated[str, Choice(KINDS)] = "wordpiece"
    """`wordpiece` is BERT's tokenizer; `byte-bpe` (byte-level BPE, as in GPT-2 and RoBERTa) has no
    unknown tokens in any language; `unigram` (as in ALBERT and XLM-RoBERTa) suits languages without
    spaces between words."""
    vocab_size: int = Field(30522, ge=16)
    """Maximum vocabulary size, including special tokens and unused slots. A small corpus fills
    less."""
    specials: Annotated[str, Choice(SPECIALS)] = "bert"
    """Names of the special tokens: `bert` is [PAD] [UNK] [CLS] [SEP] [MASK], `roberta` is
    <s> <pad> </s> <unk> <mask> (not with wordpiece)."""
    id_layout: Literal["compact", "original"] = "compact"
    """Ids of the special tokens: `compact` from 0 on, `original` as in the BERT release, such as
    [UNK] at 100 (only with wordpiece)."""
    unused: int | None = Field(None, ge=0)
    """Unused slots: entries reserved for tokens that are added later, as in the BERT release.
    Default: 99 with `--id-layout original`, else 0."""
    lowercase: bool = False
    """Convert text to lower case, as bert-base-uncased does."""
    strip_accents: bool = False
    """Remove accents and other combining marks, as bert-base-uncased does (only with wordpiece). In
    most languages this makes different words equal."""
    clean_text: bool = False
    """Remove control and format characters, among them U+200C, as the BERT release does (only with
    wordpiece)."""
    chinese_characters: bool = True
    """Treat each Chinese character as a word, as in BERT (only with wordpiece)."""
    max_word_characters: int = Field(1000, ge=1)
    """A longer word becomes one unknown token (only with wordpiece; `max_input_chars_per_word` in
    Hugging Face tokenizers, which set 100; 200 in the BERT release). In scripts without spaces a
    word is a clause."""
    min_frequency: int = Field(2, ge=1)
    """Minimum number of occurrences of a pair of tokens to be merged into an entry (not with
    unigram); with `--extend` of a new entry, for all kinds."""
    alphabet_size: int | None = Field(None, ge=1)
    """Number of single characters with an entry, most frequent first; others become unknown tokens
    (only with wordpiece; `limit_alphabet` in Hugging Face tokenizers). Default: as many as cover
    99.95% of the text, at least 1000, in at most half of the vocabulary."""
    sample_mb: float | None = Field(None, gt=0)
    """Megabytes of text to train on; documents are sampled at random from a larger corpus. Default:
    1000, or less for text without spaces, so that training takes at most about 4 GB of memory."""
    seed: int = Field(0, ge=0)
    """Seed for sampling documents."""
    tokenizer: str | None = None
    """Use this existing tokenizer instead of training one: a folder, or a name on the Hugging Face
    Hub such as google-bert/bert-base-uncased. Excludes all options for training."""
    extend: str | None = None
    """Add entries learnt from the corpus to this existing tokenizer, given as for `--tokenizer`;
    its ids stay, and text in which no new entry applies is split as before. Requires
    `--add-vocab`."""
    add_vocab: int | None = Field(None, ge=1)
    """Maximum number of entries that `--extend` adds: those that save the most tokens of the
    corpus."""
    revision: str | None = None
    """Branch, tag or commit of a tokenizer on the Hub."""
    compare: OneOrMany = ()
    """Another tokenizer to compare with on the same text: a folder, or a name on the Hub. Can be
    repeated."""
    max_wait: float = Field(120, ge=0)
    """Seconds to retry without a response from the Hub."""
    workers: int = Field(default_factory=available_cores, ge=1)
    """Threads for training; does not change the result."""

    @model_validator(mode="after")
    def _check_training_options(self) -> "TokenizeConfig":
        if self.tokenizer is not None and self.extend is not None:
            raise ValueError("--extend and --tokenizer exclude each other.")
        if (self.extend is None) != (self.add_vocab is None):
            raise ValueError("--extend and --add-vocab require each other.")
        given = [option for option in self._unused_options if option in self.model_fields_set]
        if given:
            option = "--tokenizer" if self.extend is None else "--extend"
            raise ValueError(f"{option} uses an existing tokenizer, which excludes {flags(given)}.")
        if self.existing is None and self.revision is not None:
            raise ValueError("--revision requires --tokenizer or --extend.")
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> "TokenizeConfig":
        kind = KINDS[self.kind]
        for option in KIND_OPTIONS:
            if option in self.model_fields_set and option not in kind.options:
                allowed = [name for name, other in KINDS.items() if option in other.options]
                raise ValueError(f"{flag(option)} requires --kind {' or '.join(allowed)}.")
        if self.specials not in kind.special_token_sets:
            allowed = [n for n, k in KINDS.items() if self.specials in k.special_token_sets]
            raise ValueError(f"--specials {self.specials} requires --kind {' or '.join(allowed)}.")
        if self.id_layout == "original" and self.unused_slots < ORIGINAL_UNUSED:
            raise ValueError(
                f"--unused {self.unused}: --id-layout original requires at least {ORIGINAL_UNUSED}."
            )
        return self

    @property
    def unused_slots(self) -> int:
        """Number of entries reserved for later."""
        if self.unused is not None:
            return self.unused
        return ORIGINAL_UNUSED if self.id_layout == "original" else 0

    @property
    def existing(self) -> str | None:
        """The folder or name of the tokenizer that is taken or extended."""
        return self.tokenizer if self.extend is None else self.extend

    @property
    def _unused_options(self) -> tuple[str, ...]:
        """Options that have no meaning for an existing tokenizer."""
        if self.existing is None:
            return ()
        kept = () if self.extend is None else LEARNING_OPTIONS
        return tuple(option for option in TRAINING_OPTIONS if option not in kept)

    def content(self) -> dict[str, Any]:
        """The settings that the result depends on; without training options for an existing one."""
        excluded = self._unused_options
        content = super().content().items()
        return {name: value for name, value in content if name not in excluded}
