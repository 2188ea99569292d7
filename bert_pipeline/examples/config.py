"""Options of `bertpipe examples`."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bert_pipeline.config import Choice, ShardedConfig
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.storage.manifest import read_manifest


class ExamplesConfig(ShardedConfig):
    """Make training examples by the BERT release's algorithm, or ALBERT's, RoBERTa's, SpanBERT's."""

    execution: ClassVar[frozenset[str]] = ShardedConfig.execution | {"corpus", "tokenizer", "show"}

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    tokenizer: Path
    """Folder made by `bertpipe tokenize`, any Hugging Face tokenizer's folder, or its name on the hub."""
    max_seq_length: int = Field(128, ge=8, le=65535)
    """Longest example in tokens, special tokens included."""
    objective: Annotated[str, Choice(OBJECTIVES)] = "mlm+nsp"
    """`mlm+nsp` makes sentence pairs, half with a random second one (BERT); `mlm+sop` pairs, half of them swapped
    (ALBERT); `mlm` fills examples with whole sentences (RoBERTa)."""
    across_documents: bool = False
    """Let an example go on with the next document after a separator, so that fewer are short (`mlm` only)."""

    mask_unit: Literal["token", "whole-word", "span"] = "token"
    """What is masked at a time: pieces (BERT), whole words of any tokenizer, or spans of words, the last of which ends
    where the mask rate is reached (SpanBERT)."""
    masks: Literal["static", "dynamic"] = "static"
    """`static` writes the masks of training examples into the files; `dynamic` leaves them to `bertpipe pretrain`,
    which draws others in every epoch (RoBERTa). Held-out examples always get written ones, so that evaluations
    compare."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to predict in training examples."""
    validation_mask_rate: float = Field(0.15, gt=0, lt=1)
    """The same for validation examples; left at BERT's 15%, figures of runs with different mask rates compare."""
    mask_share: float = Field(0.8, ge=0, le=1)
    """Of the tokens to predict, the share that becomes the mask token."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Of the tokens to predict, the share that becomes a random token; the others stay as they are."""
    max_predictions: int | None = Field(None, ge=1)
    """Most tokens to predict in one example, held-out ones included; by default the mask rate of the longest one."""

    short_seq_prob: float = Field(0.1, ge=0, le=1)
    """Share of the documents (with `mlm`: of the examples) that are cut to a random shorter length, so that short
    inputs are seen too."""
    dupe_factor: int = Field(5, ge=1)
    """Passes over the training documents, each with new pairs and new masks."""
    validation_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out; 0 holds out none."""
    pad: bool = False
    """Fill every row up to --max-seq-length (segment id -1), for training loops that stack rows as they are."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice."""
    show: int = Field(0, ge=0)
    """Print so many of the finished examples as people read them; alone with --out, of a folder that is complete."""

    @model_validator(mode="before")
    @classmethod
    def _take_what_made_it(cls, given: Any) -> Any:
        """Where only a finished folder is to be shown, its own settings are what was asked for."""
        if (
            not given.get("show")
            or "corpus" in given
            or not isinstance(given.get("out"), str | Path)
        ):
            return given
        out = Path(os.path.expanduser(given["out"]))  # noqa: PTH111 (as for every --out)
        made = read_manifest(out, "examples")
        return (
            made.config
            | {"tokenizer": out / made.inputs["tokenizer"].path}
            | given
            | {"corpus": out}
        )

    @property
    def shows_only(self) -> bool:
        """Whether nothing is to be made: the folder then stands for its own corpus, which may be gone."""
        return self.corpus.absolute() == self.out.absolute()

    @model_validator(mode="after")
    def _check_masks(self) -> "ExamplesConfig":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"--mask-share {self.mask_share:g} and --random-share {self.random_share:g} add up to more than 1."
            )
        if self.across_documents and OBJECTIVES[self.objective].has_pairs:
            raise ValueError(
                f"--across-documents: {self.objective} pairs sentences; use --objective mlm."
            )
        return self
