"""Options of `bertpipe examples`."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bert_pipeline.config import Choice, ShardedConfig
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.storage.manifest import read_manifest


class ExamplesConfig(ShardedConfig):
    """Make training examples as BERT, ALBERT, RoBERTa or SpanBERT do."""

    execution: ClassVar[frozenset[str]] = ShardedConfig.execution | {"corpus", "tokenizer", "show"}

    corpus: Path
    """Folder made by `bertpipe corpus`."""
    tokenizer: Path
    """Folder made by `bertpipe tokenize`, the folder of any Hugging Face tokenizer, or its name on
    the Hugging Face Hub."""
    max_seq_length: int = Field(128, ge=8, le=65535)
    """Maximum length of an example in tokens, including special tokens."""
    objective: Annotated[str, Choice(OBJECTIVES)] = "mlm+nsp"
    """Masked LM alone or with a task on sentence pairs. `mlm+nsp`: next-sentence prediction, half
    of the second sentences are random (BERT). `mlm+sop`: sentence-order prediction, half of the
    pairs are swapped (ALBERT). `mlm`: examples are filled with complete sentences (RoBERTa)."""
    across_documents: bool = False
    """Continue an example with the next document after a separator (FULL-SENTENCES in RoBERTa), so
    that fewer examples are short. Only with `--objective mlm`."""

    mask_unit: Literal["token", "whole-word", "span"] = "token"
    """What is masked together: `token` single tokens (BERT), `whole-word` all tokens of a word
    (whole word masking), `span` spans of 1 to 10 words (SpanBERT)."""
    masks: Literal["static", "dynamic"] = "static"
    """`static` masking writes the masks of training examples into the files; with `dynamic` masking
    `bertpipe pretrain` draws new masks in every epoch (RoBERTa). Validation examples always have
    static masks, so that evaluations are comparable."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to predict in training examples (`mlm_probability` in Hugging Face,
    `masked_lm_prob` in the BERT release)."""
    validation_mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to predict in validation examples. Keep the default, so that runs with
    different mask rates are comparable."""
    mask_share: float = Field(0.8, ge=0, le=1)
    """Share of the tokens to predict that is replaced by the mask token."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Share of the tokens to predict that is replaced by a random token; the rest is unchanged."""
    max_predictions: int | None = Field(None, ge=1)
    """Maximum number of tokens to predict in an example (`max_predictions_per_seq` in the BERT
    release). Default: mask rate times --max-seq-length."""

    short_seq_prob: float = Field(0.1, ge=0, le=1)
    """Probability that a document (with `mlm`: an example) gets a random shorter length, so that
    the model sees short inputs too."""
    dupe_factor: int = Field(5, ge=1)
    """Passes over the training documents, each with different pairs and masks."""
    validation_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the text that is held out for validation, in whole documents or, where these are few
    and long, as their ends; 0 for none."""
    pad: bool = False
    """Pad every row to --max-seq-length (segment id -1), for training loops that stack rows."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice."""
    show: int = Field(0, ge=0)
    """Print this many finished examples as text. With --out alone: of an existing folder."""

    @model_validator(mode="before")
    @classmethod
    def _read_settings_to_show(cls, given: Any) -> Any:
        """With `show` and `out` alone, take all settings from the manifest of the folder."""
        if (
            not given.get("show")
            or "corpus" in given
            or not isinstance(given.get("out"), str | Path)
        ):
            return given
        out = Path(os.path.expanduser(given["out"]))  # noqa: PTH111 (as for every --out)
        manifest = read_manifest(out, "examples")
        tokenizer = out / manifest.inputs["tokenizer"].path
        return manifest.config | {"tokenizer": tokenizer} | given | {"corpus": out}

    @property
    def shows_only(self) -> bool:
        """Whether only existing examples are shown: `corpus` is then the folder itself."""
        return self.corpus.absolute() == self.out.absolute()

    @property
    def max_tokens(self) -> int:
        """Most tokens in one example of one document, without special tokens."""
        return self.max_seq_length - OBJECTIVES[self.objective].special_tokens

    @property
    def max_sentence(self) -> int | None:
        """Most tokens in a sentence of a pair; None for `mlm`, which divides any long sentence."""
        return self.max_tokens if OBJECTIVES[self.objective].has_pairs else None

    @property
    def needs_word_starts(self) -> bool:
        """Whether masking needs to know which tokens begin a word."""
        return self.mask_unit != "token"

    @model_validator(mode="after")
    def _check_masks(self) -> "ExamplesConfig":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"--mask-share {self.mask_share:g} and --random-share {self.random_share:g} "
                "must not add up to more than 1."
            )
        if self.across_documents and OBJECTIVES[self.objective].has_pairs:
            raise ValueError("--across-documents requires --objective mlm.")
        return self
