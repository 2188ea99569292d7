"""Options of `bertpipe pretrain`."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from bert_pipeline.config import OneOrMany, flags
from bert_pipeline.training.config import REQUIRES, TrainConfig


class PretrainConfig(TrainConfig):
    """Pretrain BERT; defaults are those of Devlin et al. 2019, appendix A.2."""

    execution: ClassVar[frozenset[str]] = TrainConfig.execution | {
        "examples",
        "tokenizer",
        "evaluate_rows",
        "tokens_per_batch",
        "cuda_graphs",
        "evaluate_with",
        "init_revision",
        "old_text",
    }
    local: ClassVar[frozenset[str]] = TrainConfig.local | {
        "examples",
        "long_examples",
        "tokenizer",
        "init_from",
    }
    requires: ClassVar[dict[tuple[str, str | None], frozenset[str]]] = REQUIRES | {
        ("batch_size_start", None): frozenset({"batch_size_warmup"}),
        ("long_examples", None): frozenset({"long_share", "long_batch_size"}),
        ("init_from", None): frozenset({"init_revision", "old_text"}),
        ("tokens_per_batch", None): frozenset({"cuda_graphs"}),
    }

    examples: Path
    """Folder written by `bertpipe examples`."""
    tokenizer: Path
    """The tokenizer of the examples: its folder, or its name on the Hugging Face Hub."""
    model: str | dict[str, JsonValue] = "bert-base"
    """Preset (bert-tiny, bert-mini, bert-small, bert-medium, bert-base, bert-large, roberta-base,
    modernbert-tiny, modernbert-mini, modernbert-small, modernbert-medium, modernbert-base), or a
    JSON file of config fields of any masked LM in transformers, whose `model_type` selects the
    architecture (default bert)."""
    init_from: str | None = None
    """Continue pretraining from this model instead of random weights, with a new optimizer and
    schedule: the folder of a masked LM or of a run, or a name on the Hugging Face Hub (safetensors
    only). Excludes --model. If --tokenizer has entries that the model's has not, their embeddings
    start as the mean of their sub-tokens'."""
    init_revision: str | None = None
    """Branch, tag or commit of --init-from on the Hub."""
    old_text: OneOrMany = ()
    """Text like that which the model of --init-from was trained on: a file, or a source such as
    wikitext-2 (see `bertpipe corpus --source`). The summary compares both models on it. Can be
    repeated."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of hidden states and attention; by default the model's (0.1 in the presets of
    BERT and RoBERTa, 0 in those of ModernBERT)."""
    attention_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of attention weights alone, by default as --dropout. With 0, attention on a GPU needs
    no padding."""
    nsp_weight: float = Field(1.0, ge=0)
    """Weight of the next-sentence loss; the masked-LM loss has weight 1."""
    mask_rate_end: float | None = Field(None, gt=0, lt=1)
    """Mask rate at the end of the run: annealed linearly from the examples' rate, by unmasking
    tokens."""
    initialization: Literal["bert", "informed"] = "bert"
    """`bert` draws all weights at random; `informed` derives some from token counts of the
    examples, for small budgets."""

    tokens_per_batch: int | None = Field(None, ge=16)
    """Split a step into micro-batches of this many tokens per process instead of --accumulate: as
    many examples as fit, filled up with padding to one shape, so that kernels and memory see no
    other. The result is the same."""

    cuda_graphs: bool = False
    """Capture forward and backward passes as CUDA graphs and replay them: for small models, which
    are bound by kernel launches. Needs one process on a GPU, and --tokens-per-batch. Not yet run on
    a GPU."""

    batch_size_start: int | None = Field(None, ge=1)
    """Batch-size warm-up: examples per step at the start; the batch grows to --batch-size in
    multiples of it."""
    batch_size_warmup: float = Field(0.1, gt=0, lt=1)
    """Share of the run over which the batch size grows."""
    long_examples: Path | None = None
    """Longer examples for the last part of the run, as in the paper: 128 tokens, then 512."""
    long_share: float = Field(0.1, gt=0, lt=1)
    """Share of the run, at its end, that trains on --long-examples."""
    long_batch_size: int | None = Field(None, ge=1)
    """Examples per step of --long-examples; by default --batch-size."""
    save_backbone: bool = False
    """Save the encoder without its heads too, in `model/backbone`."""
    evaluate_rows: int = Field(512, ge=1)
    """Held-out examples per evaluation during training; the final one uses all."""
    evaluate_with: OneOrMany = ()
    """Minimal pairs or cloze probes to evaluate on too: a file as `bertpipe evaluate` takes it. 256
    of them are used per evaluation during training, all in the final one. Can be repeated."""

    @model_validator(mode="after")
    def _check_micro_batches(self) -> Self:
        if self.tokens_per_batch is not None and "accumulate" in self.model_fields_set:
            raise ValueError("--tokens-per-batch excludes --accumulate.")
        if self.cuda_graphs and self.checkpoint_activations:
            raise ValueError("--cuda-graphs excludes --checkpoint-activations.")
        return self

    @model_validator(mode="after")
    def _check_init_from(self) -> Self:
        excluded = [name for name in ("model", "initialization") if name in self.model_fields_set]
        if self.init_from is not None and excluded:
            raise ValueError(f"--init-from excludes {flags(excluded)}.")
        return self

    @model_validator(mode="after")
    def _check_batch_sizes(self) -> Self:
        start = self.batch_size_start or self.batch_size
        if self.batch_size % start or self.batch_size_start == self.batch_size:
            raise ValueError(
                f"--batch-size {self.batch_size} must be a multiple of --batch-size-start {start}."
            )
        has_both = self.batch_size_start and self.long_examples
        if has_both and self.batch_size_warmup + self.long_share > 1:
            raise ValueError("--batch-size-warmup and --long-share add up to more than 1.")
        if self.max_epochs is not None and self.long_examples:
            raise ValueError(
                "--max-epochs counts passes over --examples; with --long-examples give "
                "--max-steps, --max-tokens or --max-minutes."
            )
        return self

    def smaller_micro_batches(self) -> str:
        """As in `TrainConfig`."""
        if self.tokens_per_batch is None:
            return super().smaller_micro_batches()
        return f"--tokens-per-batch {max(self.tokens_per_batch // 2, 16)}"

    def content(self) -> dict[str, Any]:
        """The settings that decide the result; of inputs not the path, only whether given."""
        content = super().content() | {"long_examples": self.long_examples is not None}
        if self.init_from is None:
            return content
        return content | {"init_from": True, "model": None}
