"""Options of `bertpipe finetune`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bert_pipeline.config import Argument, Choice, OneOrMany, StageConfig, flag
from bert_pipeline.tasks.read_rows import HUB
from bert_pipeline.tasks.registry import TASKS
from bert_pipeline.training.config import TrainConfig
from bert_pipeline.training.schedule import SCHEDULES

SENTENCE_EMBEDDING = "sentence-embedding"
"""The task that sentence-transformers trains, not the engine."""
EPOCHS = 3.0
"""Length of a run without an option for it."""
EMBEDDING_OPTIONS = frozenset(
    {
        *("model", "task", "train", "validation", "text_field", "label_field", "column_names"),
        *("objective", "pooling", "max_seq_length", "dropout", "seed", "precision", "threads"),
        *("max_steps", "max_epochs", "batch_size", "learning_rate", "warmup", "weight_decay"),
        *("max_grad_norm", "log_every", "checkpoint_every", "keep_checkpoints"),
        *StageConfig.model_fields,
    }
)
"""Options that have an effect on sentence embeddings."""


class FinetuneConfig(TrainConfig):
    """Fine-tune a model; defaults are those of Devlin et al. 2019, appendix A.3."""

    execution: ClassVar[frozenset[str]] = TrainConfig.execution | {
        "model",
        "train",
        "validation",
        "test",
    }
    local: ClassVar[frozenset[str]] = TrainConfig.local | {"model", "train", "validation", "test"}
    requires: ClassVar[dict[tuple[str, str | None], frozenset[str]]] = TrainConfig.requires | {
        ("task", SENTENCE_EMBEDDING): frozenset({"objective", "pooling"})
    }

    model: Annotated[str, Argument()]
    """The model to fine-tune: its folder, the folder of its run, or a name on the Hugging Face Hub
    (safetensors only)."""
    task: Annotated[str, Choice((*TASKS, SENTENCE_EMBEDDING))] = "classification"
    """`classification` of texts or pairs of texts, also regression and several labels per text;
    `token-classification` of words, such as named entities; `question-answering` by spans of a
    context; `multiple-choice` among several texts; `sentence-embedding`, vectors whose cosine is
    the similarity of texts."""
    train: str
    """Labelled rows: a CSV, TSV, JSON lines or Parquet file, a CoNLL file for
    token-classification, a SQuAD file for question-answering, a text file with a sentence per line
    for sentence-embedding, or a dataset of the Hugging Face Hub (hub:REPO[:CONFIG])."""
    validation: str | None = None
    """Rows that select the best epoch; by default a share of --train, or the validation split of a
    dataset of the Hub."""
    validation_share: float = Field(0.1, gt=0, lt=1)
    """Share of --train that is held out without --validation; of a classifier with equal shares of
    each label."""
    test: str | None = None
    """Rows on which the best epoch is measured at the end."""
    text_field: OneOrMany = ()
    """Column of the text; give it twice for pairs. Usual names are found."""
    label_field: str | None = None
    """Column of the label. Usual names are found."""
    column_names: str | None = None
    """Names of the columns, separated by commas, for CSV and TSV files without a line of names."""
    problem: Literal["auto", "single", "multi", "regression"] = "auto"
    """What a classifier predicts: a `single` label, several (`multi`) or a number (`regression`);
    `auto` decides by the labels."""
    max_seq_length: int = Field(512, ge=8)
    """Longer texts are cut; at most the positions of the model."""
    doc_stride: int = Field(128, ge=1)
    """Tokens that two windows of a long context share in question-answering."""
    max_answer_tokens: int = Field(30, ge=1)
    """Longest answer in question-answering."""

    objective: Literal["simcse", "tsdae"] = "simcse"
    """How sentence-embedding learns from single texts: `simcse` compares a text with itself under
    other dropout (0.1), and with the rest of its batch; `tsdae` restores texts with deleted words.
    """
    pooling: Literal["mean", "cls"] = "mean"
    """The vector of a text in sentence-embedding: the mean of its tokens, or its `[CLS]`."""

    freeze: str | None = None
    """Parts that are not trained: `encoder`, which leaves the head, or a number: the embeddings and
    so many layers."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weights the loss of each label of a classifier by the inverse of its frequency."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise learning-rate decay: the factor from each layer to the one below it."""
    patience: int | None = Field(None, ge=1)
    """Early stopping: end after so many evaluations without a better one."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of hidden states and attention; by default the model's."""
    cls_start: Literal["auto", "pretrained", "mean"] = "auto"
    """Initialization of the attention of `[CLS]`, which classifiers read: `pretrained`, or `mean`,
    which sets the query weights of the last layer to 0, so that attention is uniform, and
    re-initializes the pooler. `auto` is `mean` for BERT and RoBERTa with a hidden size of at most
    256."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` replaces all weights by random ones: the same network, not pretrained."""

    protocol: Literal["single", "fast", "full"] = "single"
    """`single` run; `fast`: three seeds; `full`: three learning rates with five seeds each, of
    which the validation rows choose one. Median and interval are reported, and the majority
    class."""
    compare_random: bool = False
    """With --protocol: repeat all runs with random weights, to see what pretraining gains."""

    batch_size: int = Field(32, ge=1)
    """Examples per step, over all processes and gradient-accumulation steps."""
    warmup: float | None = Field(0.1, ge=0, lt=1)
    """Warm-up share of the run (`warmup_ratio`), in which the learning rate rises from 0."""
    schedule: Annotated[str, Choice(SCHEDULES)] = "linear"
    """Learning-rate schedule after the warm-up: `linear` or `cosine` decay to 0, or `wsd` (warm-up,
    stable, decay)."""
    max_epochs: float | None = Field(None, gt=0)
    """Passes over the training data (`num_train_epochs`); 3 unless another length is given."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations (`eval_steps`); by default each epoch."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints (`save_steps`); by default each epoch."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        lengths = ("max_steps", "max_tokens", "max_minutes", "max_epochs")
        if sum(getattr(self, name) is not None for name in lengths) > 1:
            raise ValueError(
                "give one of --max-steps, --max-tokens, --max-minutes, --max-epochs at most."
            )
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        # A recipe would find out after hours of pretraining.
        for name in ("train", "validation", "test"):
            source = getattr(self, name)
            if source and not source.startswith(HUB) and not Path(source).expanduser().is_file():
                raise ValueError(f"{flag(name)} {source}: no such file.")
        return self

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        if self.freeze not in (None, "encoder") and not str(self.freeze).isdecimal():
            raise ValueError(f"--freeze {self.freeze}: must be `encoder` or a number of layers.")
        return self

    @model_validator(mode="after")
    def _check_sentence_embedding(self) -> Self:
        without_effect = sorted(self.model_fields_set - EMBEDDING_OPTIONS)
        if self.task == SENTENCE_EMBEDDING and without_effect:
            raise ValueError(
                f"{flag(without_effect[0])} has no effect on --task {SENTENCE_EMBEDDING}."
            )
        return self

    def find_length(self) -> str:
        """The length of the run as text."""
        lengths = {
            "steps": self.max_steps,
            "tokens": self.max_tokens,
            "minutes": self.max_minutes,
            "epochs": self.max_epochs,
        }
        return next(f"{value:g} {unit}" for unit, value in lengths.items() if value is not None)

    @model_validator(mode="after")
    def _check_protocol(self) -> Self:
        if self.compare_random and self.protocol == "single":
            raise ValueError("--compare-random requires --protocol fast or full.")
        return self

    @property
    def names_of_columns(self) -> tuple[str, ...]:
        """The names of --column-names."""
        return tuple(name.strip() for name in (self.column_names or "").split(",") if name.strip())

    def content(self) -> dict[str, Any]:
        """The settings that decide the result; of inputs not the path, only whether given."""
        given = {"validation": self.validation is not None, "test": self.test is not None}
        return super().content() | given
