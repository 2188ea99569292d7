"""Preflight: read what a run needs, and check that it fits together, before the first step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.objectives import OBJECTIVES
from bert_pipeline.examples.schema import STAGE as EXAMPLES
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.architectures import adapt_config, count_positions, make_config
from bert_pipeline.model.initialization import check_informed
from bert_pipeline.model.pretraining_model import check_objective
from bert_pipeline.pretraining.batches import Examples
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.init_from import StartingModel
from bert_pipeline.storage.manifest import Input, Manifest, describe_input, read_manifest
from bert_pipeline.tokenizer.load import LoadedTokenizer, find_tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads."""

    phases: tuple[tuple[Path, Manifest], ...]
    """Folders of examples, in the order in which they are trained on."""
    tokenizer_folder: Path
    tokenizer: LoadedTokenizer
    model_config: Any
    """A transformers config."""
    start: StartingModel | None = None
    """The model of --init-from."""

    @classmethod
    def check(cls, config: PretrainConfig) -> Self:
        """Read the manifests; raises `BertpipeError` if they do not fit together."""
        folder = find_tokenizer(config.tokenizer, quiet=config.quiet)
        tokenizer = load_tokenizer(folder)
        start = None
        given = (
            *(tokenizer.vocab_size, tokenizer.special),
            *(config.dropout, config.attention_dropout),
        )
        if config.init_from is None:
            model_config = make_config(config.model, *given)
        else:
            start = StartingModel.find(config.init_from, config.init_revision, quiet=config.quiet)
            model_config = adapt_config(start.folder, *given)
        paths = [config.examples, *([config.long_examples] if config.long_examples else [])]
        phases = tuple((path, read_manifest(path, EXAMPLES)) for path in paths)
        inputs = cls(phases, folder, tokenizer, model_config, start)
        check_objective(
            model_config, inputs.examples.config["objective"], has_pairs=inputs.has_pairs
        )
        if config.initialization == "informed":
            check_informed(model_config)
        for path, examples in inputs.phases:
            inputs._check_examples(path, examples, config)
        objectives = [examples.config["objective"] for _, examples in inputs.phases]
        if len(set(objectives)) > 1:
            raise BertpipeError(
                f"{config.long_examples} has objective {objectives[1]}, {config.examples} has "
                f"{objectives[0]}. Make both with the same --objective."
            )
        return inputs

    def _check_examples(self, path: Path, examples: Manifest, config: PretrainConfig) -> None:
        if examples.inputs["tokenizer"].fingerprint != self.tokenizer.manifest.fingerprint:
            raise BertpipeError(
                f"{path} was made with another tokenizer than {config.tokenizer}. Give that one."
            )
        rate = examples.config["mask_rate"]
        if config.mask_rate_end is not None and config.mask_rate_end > rate:
            raise BertpipeError(
                f"--mask-rate-end {config.mask_rate_end}: above the mask rate {rate} of {path}."
            )
        length = examples.config["max_seq_length"]
        if config.tokens_per_batch is not None and config.tokens_per_batch < 2 * length:
            raise BertpipeError(
                f"--tokens-per-batch {config.tokens_per_batch}: must be at least two examples of "
                f"the {length} tokens of {path}."
            )
        positions = count_positions(self.model_config)
        if positions is not None and length > positions:
            raise BertpipeError(
                f"{path} has examples of up to {length} tokens, but the model has {positions} "
                "positions (max_position_embeddings). Make shorter examples or use a model with "
                "more positions."
            )

    @property
    def examples(self) -> Manifest:
        """The examples of the first phase, on whose held-out part the run is evaluated."""
        return self.phases[0][1]

    @property
    def has_pairs(self) -> bool:
        """Whether the examples are sentence pairs."""
        return OBJECTIVES[self.examples.config["objective"]].has_pairs

    def describe(self, out: Path) -> dict[str, Input]:
        """The inputs' record for the manifest."""
        described = [describe_input(out, path, examples) for path, examples in self.phases]
        examples = dict(zip(("examples", "long_examples"), described, strict=False))
        tokenizer = describe_input(out, self.tokenizer_folder, self.tokenizer.manifest)
        start = {} if self.start is None else {"init_from": self.start.describe(out)}
        return examples | start | {"tokenizer": tokenizer}

    def open(self, phase: int, split: Split, config: PretrainConfig, store: Path) -> Examples:
        """One split of the examples of a phase."""
        folder, examples = self.phases[phase]
        vocab_size: int = self.model_config.vocab_size
        return Examples.open(
            folder,
            examples,
            split,
            vocab_size,
            seed=config.seed,
            store=store,
            quiet=config.quiet,
        )
