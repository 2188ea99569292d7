"""Options of `bertpipe corpus`."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bert_pipeline.config import OneOrMany, ShardedConfig
from bert_pipeline.corpus.cleaning.registry import STEP_SETS, expand_step_sets
from bert_pipeline.corpus.languages import GUESS, GUESS_EACH, normalize_language
from bert_pipeline.corpus.sources.guess_encoding import find_codec
from bert_pipeline.corpus.sources.registry import is_hub

HUB_OPTIONS = frozenset({"split", "repository", "revision", "files"})
"""Options that apply only to sources on the Hugging Face Hub."""
WITH_FIELDS = frozenset({"jsonl", "csv", "tsv", "parquet"})
"""Sources, beside those on the Hub, whose rows have fields."""
ENCODED = frozenset({"text", "jsonl", "csv", "tsv"})
"""Sources, beside those on the Hub, whose files have an encoding."""


def _expand_step_sets(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return value  # pydantic reports the type
    return expand_step_sets(list(names))


class CorpusConfig(ShardedConfig):
    """Convert sources to documents in parquet."""

    execution: ClassVar[frozenset[str]] = ShardedConfig.execution | {
        "max_wait",
        "explain",
        "on_error",
    }

    source: OneOrMany = Field(min_length=1)
    """Source of documents: `python-docs`, `wikitext-2`, `wikitext-103`, `oscar:LANG`,
    `hub:REPO[:CONFIG]`, `text:GLOB`, `jsonl:GLOB`, `csv:GLOB`, `tsv:GLOB` or `parquet:GLOB`
    (all but parquet also compressed as .gz, .zst, .bz2 or .xz). Repeat for several sources."""
    text_field: str | None = None
    """Field or column with the text, for jsonl, csv, tsv and parquet. Default: `text`, else
    `content`."""
    encoding: str | None = None
    """Encoding of text, jsonl, csv and tsv files that are not UTF-8, such as `cp1251` or `gb18030`;
    a byte order mark goes before it."""
    language: OneOrMany = (GUESS,)
    """ISO 639 code of the language, such as `fa`, `fas` or `pt-BR`; repeat it to give one for each
    source, in the same order. It selects the rules for sentence splitting, and what the cleaning
    step `language` keeps. `guess` finds it in the first documents of a source, `guess-each` in each
    document; `oscar:LANG` sets its own."""
    language_field: str | None = None
    """Field or column with the language of a row, for jsonl, csv, tsv, parquet and the Hub."""
    clean: Annotated[tuple[str, ...], BeforeValidator(_expand_step_sets)] = STEP_SETS["basic"]
    """Cleaning steps, comma-separated or repeated. Sets: `none`, `basic` (unicode, control,
    whitespace), `web` (all except nfkc, c4 and fineweb). Steps, in the order in which they run:
    mojibake, html, unicode, nfkc, control, whitespace, language, gopher-repetition,
    gopher-quality, c4, fineweb, exact (deduplication), near (near-deduplication with MinHash)."""
    near_threshold: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity of the word 5-grams from which the step `near` treats two documents as
    duplicates."""
    max_documents: int | None = Field(None, ge=1)
    """Stop after this many documents, counted after cleaning."""
    max_bytes: int | None = Field(None, ge=1)
    """Stop before the document that would exceed this many bytes of text, counted after
    cleaning."""
    shuffle_buffer: int | None = Field(None, ge=2)
    """Read files in random order, and shuffle documents with a buffer of this size."""
    seed: int = 0
    """Random seed for shuffling."""
    split: str = "train"
    """Split of datasets on the Hugging Face Hub."""
    repository: str | None = None
    """Hub repository for `oscar:LANG`, instead of the default."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    files: str | None = None
    """Glob of the files to read in the Hub repository, instead of those that it declares."""
    max_wait: float = Field(120, ge=0)
    """Retry timeout in seconds: stop after this long without a response from the Hub (requests are
    retried with exponential backoff; a wait of up to 300 s that the Hub asks for does not count).
    Rerun the same command to resume."""
    on_error: Literal["fail", "skip"] = "fail"
    """On a broken row or file: `fail` stops and names it, `skip` skips and counts it. A run that
    failed can be resumed with `skip`."""
    explain: bool = False
    """Print samples of what each cleaning step changed or removed."""
    shard_mb: float = Field(16.0, gt=0, allow_inf_nan=False)
    """Approximate size of a shard, in megabytes of text."""

    @field_validator("source")
    @classmethod
    def _reject_invalid_utf8(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            if any("\ud800" <= char <= "\udfff" for char in source):
                raise ValueError("contains bytes that are not valid UTF-8. Use * instead.")
        return sources

    @field_validator("encoding")
    @classmethod
    def _normalize_encoding(cls, name: str | None) -> str | None:
        return name and find_codec(name)

    @field_validator("language", mode="before")
    @classmethod
    def _reject_norway(cls, given: object) -> object:
        if given is False:
            raise ValueError('YAML reads no as false. Write "no" in quotes for Norwegian.')
        return given

    @field_validator("language")
    @classmethod
    def _normalize_languages(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """`fa` for `FA` and `fas`; a region stays."""
        return tuple(
            code if code in (GUESS, GUESS_EACH) else normalize_language(code) for code in given
        )

    @model_validator(mode="after")
    def _check_languages(self) -> "CorpusConfig":
        if len(self.language) not in (1, len(self.source)):
            raise ValueError(
                f"--language: give one, or one for each --source, in the same order "
                f"(sources: {len(self.source)}, languages: {len(self.language)})."
            )
        if self.language_field and not any(
            is_hub(spec) or spec.partition(":")[0] in WITH_FIELDS for spec in self.source
        ):
            raise ValueError(
                "--language-field: applies only to jsonl, csv, tsv, parquet and the Hub, "
                "and none is given."
            )
        return self

    @model_validator(mode="after")
    def _check_near_threshold(self) -> "CorpusConfig":
        if "near_threshold" in self.model_fields_set and "near" not in self.clean:
            raise ValueError(
                "--near-threshold: applies only to the step near, which --clean does not include."
            )
        return self

    @model_validator(mode="after")
    def _check_hub_options(self) -> "CorpusConfig":
        if not any(is_hub(spec) for spec in self.source):
            for option in sorted(HUB_OPTIONS & self.model_fields_set):
                if getattr(self, option) is not None:
                    raise ValueError(
                        f"--{option}: applies only to sources on the Hub, and none is given."
                    )
        return self

    @model_validator(mode="after")
    def _check_encoding(self) -> "CorpusConfig":
        if self.encoding and not any(
            is_hub(spec) or spec.partition(":")[0] in ENCODED for spec in self.source
        ):
            raise ValueError(
                "--encoding: applies only to text, jsonl, csv and tsv, and none is given."
            )
        return self
