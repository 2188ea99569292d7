"""Options of `bertpipe pretrain`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from bert_pipeline.config import StageConfig, available_cores


class PretrainConfig(StageConfig):
    """Pretrain BERT; defaults are those of Devlin et al. 2019, appendix A.2."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "examples",
        "tokenizer",
        "accumulate",
        "num_processes",
        "checkpoint_activations",
        "threads",
        "log_every",
        "evaluate_every",
        "evaluate_rows",
        "checkpoint_every",
        "keep_checkpoints",
    }

    examples: Path
    """Folder made by `bertpipe examples`."""
    tokenizer: Path
    """The tokenizer that the examples were made with: its folder, or its name on the hub."""
    model: str | dict[str, JsonValue] = "bert-base"
    """bert-tiny, bert-mini, bert-small, bert-medium, bert-base, bert-large, roberta-base, modernbert-base, or a JSON
    file of config fields of any masked LM of transformers; `model_type` among them chooses it, BERT without."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of hidden states and attention; by default the model's own (0.1 in the presets)."""
    nsp_weight: float = Field(1.0, ge=0)
    """Weight of the next-sentence loss beside the masked loss; the paper adds them up as they are."""
    mask_rate_end: float | None = Field(None, gt=0, lt=1)
    """Mask rate at the end of the run: from the examples' own it falls there linearly, by giving tokens back."""
    initialization: Literal["bert", "informed"] = "bert"
    """`bert` draws all weights at random; `informed` takes some from counts over the examples, for small budgets."""

    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps to train for."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes to train for instead; the learning rate then follows the clock."""
    batch_size: int = Field(256, ge=1)
    """Examples in a step, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process works through one after the other in each step, to save memory."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the encoder's matrices and leaves the rest to AdamW."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon."""
    muon_iterations: int = Field(5, ge=1, lt=100)
    """Newton-Schulz iterations of Muon; 3 cost less and orthogonalise less exactly."""
    warmup: float = Field(0.01, ge=0, lt=1)
    """Share of the run in which learning rates rise from 0; afterwards they fall linearly to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on all but biases and layer norms."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    adam_epsilon: float = Field(1e-6, gt=0)
    """Term in AdamW's denominator."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm where they are larger."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; `auto` is bf16 on a GPU that has it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the encoder's layers, which takes minutes once; `auto` does for runs on a GPU that are long enough."""
    seed: int = Field(0, ge=0)
    """Seed of the weights, the order of the examples and the dropout."""

    checkpoint_activations: bool = False
    """Save memory: keep only the inputs of layers, and compute the rest again for the gradients."""
    num_processes: int = Field(1, ge=1)
    """Processes to train with, one a GPU."""
    threads: int = Field(default_factory=available_cores, ge=1)
    """CPU threads over all processes; results are equal to the bit for equal numbers of threads."""
    log_every: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl."""
    evaluate_every: int = Field(1000, ge=1)
    """Steps between evaluations on held-out examples; there is always one at the end."""
    evaluate_rows: int = Field(512, ge=1)
    """Held-out examples to evaluate on during training; at the end all are used."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints to keep."""

    @model_validator(mode="after")
    def _check_length(self) -> "PretrainConfig":
        if (self.max_steps is None) == (self.max_minutes is None):
            raise ValueError("give either --max-steps or --max-minutes, and not both.")
        if self.batch_size % (self.num_processes * self.accumulate):
            raise ValueError(
                f"--batch-size {self.batch_size} must be a multiple of --num-processes × --accumulate "
                f"({self.num_processes * self.accumulate})."
            )
        return self
