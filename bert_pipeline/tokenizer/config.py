"""Options of `bertpipe tokenize`."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bert_pipeline.config import OneOrMany, StageConfig, available_cores, flags

ONLY_WORDPIECE = ("strip_accents", "chinese_characters", "alphabet_size", "id_layout")
TRAINING = (
    *("kind", "vocab_size", "specials", "unused", "lowercase", *ONLY_WORDPIECE),
    *("min_frequency", "sample_mb"),
)
"""Options that say how a vocabulary is learnt; without meaning for one that exists."""
ORIGINAL_UNUSED = 99
"""Unused slots between `[PAD]` and `[UNK]` in the vocabularies of the BERT release."""


class TokenizeConfig(StageConfig):
    """Train a tokenizer on a corpus, or take an existing one."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "corpus",
        "workers",
        "compare",
        "max_wait",
    }

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    kind: Literal["wordpiece", "byte-bpe"] = "wordpiece"
    """`wordpiece` is BERT's; `byte-bpe` knows no unknown character and suits any language."""
    vocab_size: int = Field(30522, ge=16)
    """Entries of the vocabulary, special tokens and unused slots included."""
    specials: Literal["bert", "roberta"] = "bert"
    """Names of the special tokens: [PAD] [UNK] [CLS] [SEP] [MASK], or <s> <pad> </s> <unk> <mask> (byte-bpe)."""
    id_layout: Literal["compact", "original"] = "compact"
    """`compact` numbers the special tokens from 0; `original` as the BERT release does, [UNK] at 100 (wordpiece)."""
    unused: int | None = Field(None, ge=0)
    """Entries kept free for later, as in the BERT release; by default 99 for the original layout, else none."""
    lowercase: bool | None = None
    """Fold case; by default as the BERT release's uncased model for wordpiece, and not for byte-bpe."""
    strip_accents: bool | None = None
    """Remove accents (wordpiece); by default when lowercasing, as BERT does."""
    chinese_characters: bool = True
    """Take each CJK character as a word (wordpiece), as BERT does."""
    min_frequency: int = Field(2, ge=1)
    """A piece that occurs less often gets no entry."""
    alphabet_size: int | None = Field(None, ge=1)
    """Single characters that get an entry, the most frequent first (wordpiece); others are unknown. By default as many
    as cover 99.95% of the text, at least 1000; more entries than that only as far as half of the vocabulary goes."""
    sample_mb: float | None = Field(None, gt=0)
    """Megabytes of text to learn from; from a larger corpus, documents are drawn at random. By default 1000, or fewer
    where words are long, as without spaces: the trainer holds every word that is new, in about 4 GB of memory."""
    seed: int = Field(0, ge=0)
    """Seed of that draw, and of the text that tokenizers are measured on."""
    tokenizer: str | None = None
    """Take this tokenizer instead of training one: a folder, or a name on the hub such as
    google-bert/bert-base-uncased. Options of training do not go with it."""
    revision: str | None = None
    """Branch, tag or commit of a tokenizer on the hub."""
    compare: OneOrMany = ()
    """Another tokenizer, a folder or a name on the hub, to be measured on the same text; may be given several times."""
    max_wait: float = Field(120, ge=0)
    """Seconds to keep trying while the hub gives nothing."""
    workers: int = Field(default_factory=available_cores, ge=1)
    """Threads to count with; the result is the same for any number."""

    @model_validator(mode="after")
    def _check_trainingflags(self) -> "TokenizeConfig":
        given = [option for option in TRAINING if option in self.model_fields_set]
        if self.tokenizer is not None and given:
            raise ValueError(f"--tokenizer takes a tokenizer as it is: leave out {flags(given)}.")
        if self.tokenizer is None and self.revision is not None:
            raise ValueError("--revision: only for a --tokenizer on the hub, and none is given.")
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> "TokenizeConfig":
        only_wordpiece = [option for option in ONLY_WORDPIECE if option in self.model_fields_set]
        if self.kind == "byte-bpe" and only_wordpiece:
            raise ValueError(f"byte-bpe knows no {flags(only_wordpiece)}; leave it out.")
        if self.kind == "wordpiece" and self.specials != "bert":
            raise ValueError(
                f"--specials {self.specials}: only for --kind byte-bpe; wordpiece has BERT's."
            )
        if self.id_layout == "original" and self.unused_slots < ORIGINAL_UNUSED:
            raise ValueError(
                f"--unused {self.unused}: --id-layout original has at least {ORIGINAL_UNUSED}."
            )
        return self

    @property
    def unused_slots(self) -> int:
        """How many entries are kept free."""
        return (
            self.unused
            if self.unused is not None
            else ORIGINAL_UNUSED * (self.id_layout == "original")
        )

    def content(self) -> dict[str, Any]:
        """The settings that decide the result; how to train is none where nothing is trained."""
        without = set(TRAINING) if self.tokenizer is not None else set()
        return {name: value for name, value in super().content().items() if name not in without}
