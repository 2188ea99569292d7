"""Options of `bertpipe pretrain`."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from bert_pipeline.config import OneOrMany, StageConfig, available_cores, flag

ADAMW_LEARNING_RATE, ADAMW_WARMUP = 1e-4, 0.01
LAMB_BATCH, LAMB_LEARNING_RATE, LAMB_WARMUP = 32_768, 5e-3, 0.2
NEEDS = {
    ("batch_size_start", None): {"batch_size_warmup"},
    ("long_examples", None): {"long_share", "long_batch_size"},
    ("schedule", "wsd"): {"decay"},
    ("optimizer", "muon"): {"muon_learning_rate", "muon_momentum", "muon_iterations"},
}
"""Options that say nothing without another one, or without that value of it."""


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
        "distribute",
        "tracker",
        "profile",
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
    max_tokens: int | None = Field(None, ge=1)
    """Real tokens (no padding) to train on instead."""
    max_minutes: float | None = Field(None, gt=0)
    """Minutes to train for instead; the schedules then follow the clock."""
    batch_size: int = Field(256, ge=1)
    """Examples in a step, over all processes."""
    batch_size_start: int | None = Field(None, ge=1)
    """Examples in the first steps; the batch grows from there to --batch-size, by as many at a time."""
    batch_size_warmup: float = Field(0.1, gt=0, lt=1)
    """Share of the run over which the batch grows from --batch-size-start, each size for as long as the others."""
    long_examples: Path | None = None
    """Longer examples for the last part of the run, as in the paper: 128 tokens, then 512."""
    long_share: float = Field(0.1, gt=0, lt=1)
    """Share of the run, at its end, that trains on --long-examples."""
    long_batch_size: int | None = Field(None, ge=1)
    """Examples in a step of --long-examples; by default --batch-size."""
    accumulate: int = Field(1, ge=1)
    """Parts that a process works through one after the other in each step, to save memory."""

    optimizer: Literal["adamw", "lamb", "muon"] = "adamw"
    """`lamb` is for batches of thousands; `muon` orthogonalises the updates of the encoder's matrices and leaves the
    rest to AdamW."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW, also beside Muon (1e-4), or of LAMB (its authors': 5e-3 for 32,768 examples a step,
    with the square root of their number)."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of Muon, on the matrices that are its own."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon."""
    muon_iterations: int = Field(5, ge=1, lt=100)
    """Newton-Schulz iterations of Muon; 3 cost less and orthogonalise less exactly."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """How learning rates go on after the warm-up: `linear` or `cosine` down to 0, or `wsd`, stable until they decay."""
    warmup: float | None = Field(None, ge=0, lt=1)
    """Share of the run in which learning rates rise from 0 (0.01; of LAMB its authors': 0.2 for 32,768 examples a step,
    in proportion to their number)."""
    decay: float = Field(0.2, gt=0, le=1)
    """Last share of the run, in which wsd lets learning rates fall to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on all but biases and layer norms."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment of AdamW or LAMB."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment of AdamW or LAMB."""
    adam_epsilon: float = Field(1e-6, gt=0)
    """Term in the denominator of AdamW or LAMB."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm where they are larger."""
    max_bad_steps: int = Field(10, ge=1)
    """Steps in a row whose loss or gradient is not finite, before the run goes back to its last checkpoint and on past
    their batches; each is left out, its batch written to skipped/. If that does not help, the run stops."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; `auto` is bf16 on a GPU that has it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the encoder's layers, which takes minutes once; `auto` does for runs on a GPU that are long enough."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the weights, the order of the examples and the dropout."""

    checkpoint_activations: bool = False
    """Save memory: keep only the inputs of layers, and compute the rest again for the gradients."""
    num_processes: int = Field(1, ge=1)
    """Processes to train with on this machine, one a GPU; for several machines use `accelerate launch` or torchrun."""
    distribute: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` keeps the whole model in each process; `fsdp` (FSDP2) keeps weights, gradients and optimizer in shards."""
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
    tracker: OneOrMany = ()
    """Where to send the metrics besides metrics.jsonl, by Accelerate's names: tensorboard, trackio, wandb, mlflow, and
    others; may be given several times."""
    profile: bool = False
    """Write a trace of three early steps to profile/, for Perfetto or chrome://tracing, and what costs most in them."""

    @model_validator(mode="after")
    def _check_length(self) -> "PretrainConfig":
        if [self.max_steps, self.max_tokens, self.max_minutes].count(None) != 2:
            raise ValueError("give one of --max-steps, --max-tokens and --max-minutes.")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> "PretrainConfig":
        if self.schedule == "wsd" and self.find_warmup() + self.decay > 1:
            raise ValueError(
                f"--warmup {self.find_warmup():g} and --decay {self.decay:g} are more than the run."
            )
        return self

    @model_validator(mode="after")
    def _check_order(self) -> "PretrainConfig":
        for (needed, value), options in NEEDS.items():
            idle, given = sorted(options & self.model_fields_set), getattr(self, needed)
            if idle and (given is None if value is None else given != value):
                wanted = flag(needed) + (f" {value}" if value else "")
                raise ValueError(f"{flag(idle[0])} is for {wanted}, which is not given.")
        start = self.batch_size_start or self.batch_size
        if self.batch_size % start or self.batch_size_start == self.batch_size:
            raise ValueError(
                f"--batch-size {self.batch_size} must be a multiple of --batch-size-start {start}."
            )
        if (
            self.batch_size_start
            and self.long_examples
            and self.batch_size_warmup + self.long_share > 1
        ):
            raise ValueError("--batch-size-warmup and --long-share add up to more than the run.")
        return self

    def content(self) -> dict[str, Any]:
        """The settings that decide the result: where the longer examples lie does not, but whether there are any."""
        return super().content() | {"long_examples": self.long_examples is not None}

    def together(self) -> dict[str, Any]:
        """What all processes of a run must be told alike; where things lie may differ from host to host."""
        own = {
            "out",
            "examples",
            "long_examples",
            "tokenizer",
            "threads",
            "num_processes",
            "quiet",
            "overwrite",
        }
        return self.model_dump(mode="json", exclude=own | {"tracker", "profile"})

    def find_learning_rate(self) -> float:
        """The peak of AdamW or LAMB, given or by default (You et al. 2020, table 4)."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer == "lamb":
            return LAMB_LEARNING_RATE * math.sqrt(self.batch_size / LAMB_BATCH)
        return ADAMW_LEARNING_RATE

    def find_warmup(self) -> float:
        """The share of the run that warms up, given or by default (You et al. 2020, table 4)."""
        if self.warmup is not None:
            return self.warmup
        if self.optimizer == "lamb":
            return min(LAMB_WARMUP, LAMB_WARMUP * self.batch_size / LAMB_BATCH)
        return ADAMW_WARMUP
