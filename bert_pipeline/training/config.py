"""Options of a training run, common to pretraining and fine-tuning."""

import os
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bert_pipeline.config import Choice, OneOrMany, StageConfig, available_cores, flag
from bert_pipeline.training.optimizers.registry import OPTIMIZERS
from bert_pipeline.training.schedule import SCHEDULES, RunLength, Schedule

REQUIRES: dict[tuple[str, str | None], frozenset[str]] = {
    ("schedule", "wsd"): frozenset({"decay"}),
    **{("optimizer", name): kind.options for name, kind in OPTIMIZERS.items() if kind.options},
}
"""Options that have no effect without another one, or without that value of it."""


class TrainConfig(StageConfig):
    """A training run; defaults are those of Devlin et al. 2019, appendix A.2."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "accumulate",
        "num_processes",
        "checkpoint_activations",
        "threads",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "distribute",
        "tracker",
        "profile",
    }
    local: ClassVar[frozenset[str]] = frozenset(
        {"out", "threads", "num_processes", "quiet", "verbose", "overwrite", "tracker", "profile"}
    )
    """Options that may differ between the processes of a run, such as paths on several hosts."""
    requires: ClassVar[dict[tuple[str, str | None], frozenset[str]]] = REQUIRES

    max_steps: int | None = Field(None, ge=0)
    """Train for this many optimizer steps. A finished run of `--schedule wsd` goes on from before
    its decay if the number is raised."""
    max_tokens: int | None = Field(None, ge=1)
    """Train for this many real tokens (without padding) instead."""
    max_minutes: float | None = Field(None, gt=0)
    """Train for this many minutes instead; the schedules then follow the elapsed time."""
    max_epochs: float | None = Field(None, gt=0)
    """Train for this many epochs (passes over the training data, `num_train_epochs`) instead."""
    batch_size: int = Field(256, ge=1)
    """Examples per step, over all processes and gradient-accumulation steps."""
    accumulate: int = Field(1, ge=1)
    """Gradient-accumulation steps per process (`gradient_accumulation_steps`): less memory, the
    same result."""

    optimizer: Annotated[str, Choice(OPTIMIZERS)] = "adamw"
    """`lamb` is for batches of thousands of examples; `muon` orthogonalizes the updates of the
    matrices between hidden states and uses AdamW for the rest."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW, also together with Muon (1e-4), or of LAMB (5e-3 for 32,768
    examples per step, scaled with the square root of their number)."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of Muon."""
    muon_iterations: int = Field(5, ge=1, lt=100)
    """Newton-Schulz iterations of Muon; 3 are cheaper and less exact."""
    schedule: Annotated[str, Choice(SCHEDULES)] = "linear"
    """Learning-rate schedule after the warm-up: `linear` or `cosine` decay to 0, or `wsd` (warm-up,
    stable, decay)."""
    warmup: float | None = Field(None, ge=0, lt=1)
    """Warm-up share of the run (`warmup_ratio`), in which the learning rate rises from 0 (0.01;
    with LAMB 0.2 for 32,768 examples per step, in proportion to their number)."""
    decay: float = Field(0.2, gt=0, le=1)
    """Share of the run, at its end, in which `wsd` decays the learning rate to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on all parameters except biases and layer norms."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the first moment of AdamW or LAMB."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of the second moment of AdamW or LAMB."""
    adam_epsilon: float = Field(1e-6, gt=0)
    """Epsilon of AdamW or LAMB, added to the denominator."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping: larger gradient norms are scaled down to this one."""
    max_bad_steps: int = Field(10, ge=1)
    """Consecutive steps with a loss or gradient that is not finite after which the run is rolled
    back to its last checkpoint and continues after their batches. Each such step is skipped, its
    batch written to skipped/. If it happens again, the run stops."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products (mixed precision): `auto` is bf16 on GPUs and CPUs that
    multiply it fast, fp16 with a loss scale on older GPUs, and fp32 elsewhere. fp32 uses TF32 on
    GPUs that have it. A run resumes only in the precision in which it was started."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the encoder's layers (`torch.compile`); `auto` does so for runs on a GPU that are
    long enough to amortise compilation."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial weights, the order of the examples and dropout."""

    checkpoint_activations: bool = False
    """Save memory: recompute activations in the backward pass (gradient checkpointing)."""
    num_processes: int = Field(1, ge=1)
    """Processes on this machine, one per GPU; for several machines use `accelerate launch` or
    torchrun."""
    distribute: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` replicates the model in each process; `fsdp` (FSDP2) shards weights, gradients and
    optimizer state."""
    threads: int = Field(default_factory=available_cores, ge=1)
    """CPU threads over all processes; results are bit-identical for the same number of threads."""
    log_every: int = Field(20, ge=1)
    """Steps between lines of metrics.jsonl (`logging_steps`)."""
    evaluate_every: int = Field(1000, ge=1)
    """Steps between evaluations on held-out examples (`eval_steps`); the last is at the end."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints (`save_steps`)."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints to keep, the newest ones (`save_total_limit`)."""
    tracker: OneOrMany = ()
    """Experiment trackers to send the metrics to, by Accelerate's names: tensorboard, trackio,
    wandb, mlflow and others; can be repeated."""
    profile: bool = False
    """Profile three early steps: write a trace for Perfetto or chrome://tracing and a table of the
    most expensive operators, on a GPU also kernels, to profile/."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        lengths = ("max_steps", "max_tokens", "max_minutes", "max_epochs")
        if sum(getattr(self, name) is not None for name in lengths) != 1:
            raise ValueError(
                "give exactly one of --max-steps, --max-tokens, --max-minutes, --max-epochs."
            )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        warmup = self.find_warmup()
        if self.schedule == "wsd" and warmup + self.decay > 1:
            raise ValueError(
                f"--warmup {warmup:g} and --decay {self.decay:g} add up to more than 1."
            )
        return self

    @model_validator(mode="after")
    def _check_requirements(self) -> Self:
        for (required, value), options in self.requires.items():
            given = sorted(options & self.model_fields_set)
            actual = getattr(self, required)
            is_met = actual is not None if value is None else actual == value
            if given and not is_met:
                wanted = flag(required) + (f" {value}" if value else "")
                raise ValueError(f"{flag(given[0])} requires {wanted}.")
        return self

    def length(self) -> RunLength:
        """The length of the run."""
        seconds = self.max_minutes and self.max_minutes * 60
        return RunLength(self.max_steps, self.max_tokens, self.max_epochs, seconds)

    def learning_rate_schedule(self) -> Schedule:
        """The learning-rate schedule."""
        return Schedule(self.schedule, self.find_warmup(), self.decay)

    def shared_by_processes(self) -> dict[str, Any]:
        """The options that must be equal in all processes of a run."""
        return self.model_dump(mode="json", exclude=set(self.local))

    def find_learning_rate(self) -> float:
        """The peak learning rate, given or the optimizer's default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return OPTIMIZERS[self.optimizer].learning_rate(self.batch_size)

    def smaller_micro_batches(self) -> str:
        """The option with which a step takes half the memory, for messages."""
        return f"--accumulate {2 * self.accumulate}"

    @property
    def starts_processes(self) -> bool:
        """Whether the run starts its processes: not if it has one, or if a launcher started it."""
        return self.num_processes > 1 and "WORLD_SIZE" not in os.environ

    def find_warmup(self) -> float:
        """The warm-up share of the run, given or the optimizer's default."""
        if self.warmup is not None:
            return self.warmup
        return OPTIMIZERS[self.optimizer].warmup(self.batch_size)
