"""Options of `bertpipe corpus`."""

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bert_pipeline.config import OneOrMany, ShardedConfig

Step = Literal[
    "mojibake",
    "html",
    "unicode",
    "control",
    "whitespace",
    "language",
    "gopher-repetition",
    "gopher-quality",
    "c4",
    "fineweb",
    "exact",
    "near",
]
"""Cleaning steps, in the order in which they run."""

STEP_SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "basic": ("unicode", "control", "whitespace"),
    "web": tuple(step for step in get_args(Step) if step not in ("c4", "fineweb")),
}


WIKITEXT = ("wikitext-2", "wikitext-103")
HUB_OPTIONS = frozenset({"split", "repository", "revision", "files"})


def is_hub(spec: str) -> bool:
    """Whether a `--source` value names a data set of the hub."""
    return spec in WIKITEXT or spec.startswith(("oscar:", "hub:"))


def _name_steps(given: object) -> object:
    """Sets and comma-separated names as steps, in the order in which they run, whatever order they are named in."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return given
    parts = [part.strip() for name in names for part in name.split(",")]
    for part in parts:
        if part not in (*STEP_SETS, *get_args(Step)):
            raise ValueError(
                f"{part} is unknown. Sets: {', '.join(STEP_SETS)}. Steps: {', '.join(get_args(Step))}."
            )
    named = {step for part in parts for step in STEP_SETS.get(part, (part,))}
    return tuple(step for step in get_args(Step) if step in named)


class CorpusConfig(ShardedConfig):
    """Turn sources into documents in parquet."""

    execution: ClassVar[frozenset[str]] = ShardedConfig.execution | {
        "max_wait",
        "explain",
        "on_error",
    }

    source: OneOrMany = Field(min_length=1)
    """`python-docs`, `wikitext-2`, `wikitext-103`, `oscar:LANG`, `hub:REPO[:CONFIG]`, `text:GLOB`, `jsonl:GLOB` or
    `parquet:GLOB` (text and jsonl also as .gz, .zst, .bz2 or .xz); may be given several times."""
    text_field: str | None = None
    """Field or column that holds the text in jsonl and parquet; by default `text`, else `content`."""
    language: str = "en"
    """ISO 639 code of the documents' language; it chooses the sentence rules and what the step `language` keeps.
    `oscar:LANG` says its own."""
    clean: Annotated[tuple[Step, ...], BeforeValidator(_name_steps)] = STEP_SETS["basic"]  # type: ignore[assignment]
    """Cleaning steps, or a set of them: `none`, `basic` (unicode, control, whitespace) or `web` (all but c4 and
    fineweb). Steps: mojibake, html, unicode, control, whitespace, language, gopher-repetition, gopher-quality, c4,
    fineweb, exact, near. Comma-separated or given several times."""
    near_threshold: float = Field(0.8, gt=0, lt=1)
    """For the step `near`: share of common word 5-grams (Jaccard similarity) from which two documents are the same."""
    max_documents: int | None = Field(None, ge=1)
    """Take this many documents, those that cleaning leaves, and read no further."""
    max_bytes: int | None = Field(None, ge=1)
    """Take whole documents while their text, cleaned, stays within this many bytes, and read no further."""
    shuffle_buffer: int | None = Field(None, ge=2)
    """Read files in random order, and shuffle documents through a buffer of this many."""
    seed: int = 0
    """Seed of the shuffling."""
    split: str = "train"
    """Split of hub data sets."""
    repository: str | None = None
    """Hub repository that `oscar:LANG` reads instead of its default."""
    revision: str | None = None
    """Branch, tag or commit of hub repositories."""
    files: str | None = None
    """Glob of the files to read in hub repositories, instead of those that the repository declares."""
    max_wait: float = Field(120, ge=0)
    """Seconds to keep trying while the hub gives nothing; after that the run stops and can be resumed."""
    on_error: Literal["fail", "skip"] = "fail"
    """On a broken row or file: `fail` names it and stops, `skip` leaves it out and counts it. A run that failed goes on
    with `skip`."""
    explain: bool = False
    """Show samples of what each cleaning step changed or removed."""
    shard_mb: float = Field(16.0, gt=0, allow_inf_nan=False)
    """Megabytes of text that a shard takes in, about."""

    @field_validator("source")
    @classmethod
    def _refuse_bytes(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            if any("\ud800" <= char <= "\udfff" for char in source):
                raise ValueError("holds bytes that are no UTF-8. Put * in their place.")
        return sources

    @field_validator("language")
    @classmethod
    def _read_language(cls, language: str) -> str:
        """`fa` for `FA`; a region stays as it is."""
        name, hyphen, region = language.partition("-")
        if not re.fullmatch(r"[A-Za-z]{2,3}", name):
            raise ValueError("an ISO 639 code was expected, such as en or fa")
        return name.lower() + hyphen + region

    @model_validator(mode="after")
    def _check_near_threshold(self) -> "CorpusConfig":
        if "near_threshold" in self.model_fields_set and "near" not in self.clean:
            raise ValueError(
                "--near-threshold: only for the step near, and --clean does not name it."
            )
        return self

    @model_validator(mode="after")
    def _check_hub_options(self) -> "CorpusConfig":
        if not any(is_hub(spec) for spec in self.source):
            for option in sorted(HUB_OPTIONS & self.model_fields_set):
                if getattr(self, option) is not None:
                    raise ValueError(f"--{option}: only for sources on the hub, and none is given.")
        return self
