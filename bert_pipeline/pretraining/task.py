"""BERT pretraining as a task of the training engine: batches, evaluation, skipped batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bert_pipeline.model.fixed_shapes import CPU_TOKEN_MULTIPLE, BatchShape, fill_up
from bert_pipeline.model.flops import training_flops
from bert_pipeline.model.initialization import COUNTED_TOKENS, initialize_informed
from bert_pipeline.model.pretraining_model import PretrainingModel, make_network
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.adaptation import Adaptation
from bert_pipeline.pretraining.batches import LENGTH_SAMPLE, Examples, MaskSubset
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import (
    ROWS_PER_BATCH,
    Evaluation,
    compute_metrics,
    sum_metrics,
    unigram_log_probabilities,
)
from bert_pipeline.pretraining.memmap_rows import FOLDER as STORE
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.sampler import Cursor, Sampler, choose_rows, draw_rows
from bert_pipeline.pretraining.skipped_batches import write_skipped_batch
from bert_pipeline.pretraining.zero_shot.during_training import read_zero_shot_files
from bert_pipeline.pretraining.zero_shot.masked_lm import MaskedLM
from bert_pipeline.progress import print_line
from bert_pipeline.ragged import Int64Array
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.position import Position
from bert_pipeline.training.task import StepInputs

PROBED_ROWS = 4
"""Examples with which unused parameters are found, and the saved model is checked."""


class PretrainingTask:
    """One process's part of masked-LM and sentence-pair pretraining."""

    def __init__(self, config: PretrainConfig, inputs: Inputs, ranks: Ranks, folder: Path) -> None:
        """Open the examples; `folder` is the run's."""
        self.config = config
        self.inputs = inputs
        self.ranks = ranks
        self.folder = folder
        self.losses: Mapping[str, float] = {"mlm_loss": 1.0, "nsp_loss": config.nsp_weight}
        store = folder / STORE
        self.examples = [
            inputs.open(phase, "train", config, store) for phase in range(len(inputs.phases))
        ]
        self.validation: list[Examples | None] = [
            inputs.open(phase, "validation", config, store)
            if examples.counts.get("validation_rows")
            else None
            for phase, (_, examples) in enumerate(inputs.phases)
        ]
        rates = [examples.config["mask_rate"] for _, examples in inputs.phases]
        self._final_mask_shares = [(config.mask_rate_end or rate) / rate for rate in rates]
        self._sampler = Sampler.from_config(config)
        self._unigram = unigram_log_probabilities(config.examples)
        self._shapes = [self._find_shape(phase) for phase in range(len(inputs.phases))]
        # Read by the main process alone, and before the first step.
        self._zero_shot = ranks.broadcast(lambda: read_zero_shot_files(config.evaluate_with))
        self._phase: int | None = None
        """The phase of the latest line of metrics, at first that of the first step."""
        self.new_heads: Sequence[str] = ()
        """Weights that the model of --init-from lacked, which are random."""
        self.model: PretrainingModel
        """What is evaluated; set once it has been made for these examples."""

    def _find_shape(self, phase: int) -> BatchShape | None:
        """The shape of all micro-batches of a phase with `--tokens-per-batch`."""
        tokens = self.config.tokens_per_batch
        if tokens is None:
            return None
        settings = self.inputs.phases[phase][1].config
        examples = self.examples[phase]
        mean_length = examples.count_tokens(choose_rows(len(examples), LENGTH_SAMPLE))
        return BatchShape.from_budget(
            tokens,
            mean_length / min(len(examples), LENGTH_SAMPLE),
            settings["max_seq_length"],
            settings["mask_rate"],
        )

    def _fill_up(self, batch: PretrainingBatch, phase: int) -> PretrainingBatch:
        """The batch in the shape of its phase, or on a CPU in bf16 in one of a few shapes."""
        shape = self._shapes[phase]
        ranks = self.ranks
        if shape is None and ranks.device.type == "cpu" and ranks.precision.half_dtype:
            length = self.inputs.phases[phase][1].config["max_seq_length"]
            shape = BatchShape.from_batch(batch, CPU_TOKEN_MULTIPLE, length)
        if shape is None or not len(batch.tokens):
            return batch
        return fill_up(batch, shape, self.inputs.tokenizer.special.pad)

    def make_network(self) -> PreTrainedModel:
        """The stock model with its initial weights."""
        torch.manual_seed(self.config.seed)
        inputs = self.inputs
        if inputs.start is not None:
            loaded, self.new_heads = inputs.start.load(
                inputs.model_config, inputs.tokenizer, with_pairs=inputs.has_pairs
            )
            return loaded
        network: PreTrainedModel = make_network(inputs.model_config, with_pairs=inputs.has_pairs)
        # The other processes get the weights of the main one, and need no memory for the counts.
        if self.config.initialization == "informed" and self.ranks.is_main:
            tokens, offsets = self.examples[0].sample_unmasked(COUNTED_TOKENS)
            special = self.inputs.tokenizer.special
            initialize_informed(network, tokens, offsets, self._unigram, special)
        return network

    def largest_batches(self) -> Iterator[PretrainingBatch]:
        """A micro-batch of the longest examples for each phase."""
        parts = self.config.accumulate * self.ranks.world_size
        for phase, examples in enumerate(self.examples):
            size = self._sampler.largest_size(phase)
            rows = examples.longest(math.ceil(size / parts))
            if shape := self._shapes[phase]:
                rows = rows[next(shape.split(examples.count_tokens_of_each(rows)))]
            yield self._fill_up(examples.collate(rows), phase)

    def few_examples(self) -> PretrainingBatch:
        """A batch of the first examples, on the CPU."""
        examples = self.examples[0]
        return examples.collate(np.arange(min(len(examples), PROBED_ROWS)))

    def initial_weights(self) -> Mapping[str, torch.Tensor]:
        """The weights that the run started from."""
        return self.ranks.broadcast_tensors(
            {name: value.detach() for name, value in self.make_network().named_parameters()}
        )

    def make_step(self, position: Position, progress: float) -> StepInputs:
        """This rank's micro-batches of the step at a position."""
        config = self.config
        ranks = self.ranks
        # Which examples the step takes, and which of its masks are kept: the same on all ranks.
        cursor = Cursor.from_json(position.cursor)
        if self._phase is None:
            self._phase = cursor.phase
        plan = self._sampler.plan(cursor, progress)
        examples = self.examples[plan.phase]
        rows, epochs = draw_rows(len(examples), plan.first_row, plan.size, config.seed, plan.phase)
        mask_share = 1 - progress * (1 - self._final_mask_shares[plan.phase])
        subset = MaskSubset(mask_share, config.seed, position.step)
        # This rank's examples, in micro-batches.
        parts, micro_batches = self._split(rows, plan.phase)
        batches = [examples.collate(rows[part], subset, epochs[part]) for part in parts]
        pairs = sum(map(len, parts)) if examples.has_pairs else 0
        masked = sum(len(batch.masked_labels) for batch in batches)
        flops = [training_flops(self.inputs.model_config, batch) for batch in batches]
        known = [value for value in flops if value is not None]
        # With fewer examples than ranks × micro-batches, all ranks still join the all-reduce.
        if missing := micro_batches - len(batches):
            placeholder = examples.collate(rows[:1], subset, epochs[:1])
            batches += [replace(placeholder, is_placeholder=True)] * missing
        batches = [self._fill_up(batch, plan.phase) for batch in batches]
        if ranks.device.type == "cuda":
            batches = [batch.pin() for batch in batches]
        return StepInputs(
            micro_batches=batches,
            terms=(masked, pairs),
            tokens=examples.count_tokens(rows),
            epochs=plan.next.rows / len(examples),
            cursor=plan.next.to_json(),
            flops=sum(known) if len(known) == len(flops) else None,
            metrics={
                "epoch": int(epochs[0]),
                "batch_size": plan.size,
                "phase": plan.phase,
            },
            source=(plan.phase, rows, subset, epochs),
        )

    def _split(self, rows: Int64Array, phase: int) -> tuple[list[Int64Array], int]:
        """Places in `rows` of this rank's micro-batches, and the most that any rank has."""
        world_size = self.ranks.world_size
        of_ranks = [np.arange(rank, len(rows), world_size) for rank in range(world_size)]
        own = of_ranks[self.ranks.rank]
        shape = self._shapes[phase]
        if shape is None:
            parts = [part for part in np.array_split(own, self.config.accumulate) if len(part)]
            return parts, self.config.accumulate
        lengths = self.examples[phase].count_tokens_of_each(rows)
        most = max(len(list(shape.split(lengths[places]))) for places in of_ranks)
        return [own[part] for part in shape.split(lengths[own])], most

    def record_skipped(self, step: int, inputs: StepInputs) -> None:
        """Write the batch of a step that was skipped to `skipped/`."""
        if not self.ranks.is_main:
            return
        phase, rows, subset, epochs = inputs.source
        batch = self.examples[phase].collate(rows, subset, epochs)
        path = write_skipped_batch(self.folder, step, batch, rows)
        print_line(
            f"  step {step:,} skipped: loss or gradient not finite; its batch is in "
            f"{path.relative_to(self.folder)}",
            quiet=self.config.quiet,
        )

    def evaluate(self, *, final: bool) -> Mapping[str, Any]:
        """Metrics on held-out examples with the prefix `eval_`; empty without any.

        Once the run trains on longer examples, theirs too, with the prefix `eval_long_`. With
        --evaluate-with also the metrics of its files.
        """
        metrics: dict[str, Any] = {}
        for phase, prefix in enumerate(("eval_", "eval_long_")[: len(self.validation)]):
            validation = self.validation[phase]
            if validation is None or (phase and not final and not self._phase):
                continue
            evaluation = self._evaluate(validation, final=final)
            if not final and self.ranks.is_main:
                line = (
                    f"  held out{' (longer examples)' if phase else ''}: masked-LM loss "
                    f"{evaluation.mlm_loss:.3f} (unigram {evaluation.unigram_loss:.3f}), top-1 "
                    f"{evaluation.top1_accuracy:.1%}"
                )
                lines = [line, *evaluation.describe_sources()]
                print_line("\n    ".join(lines), quiet=self.config.quiet)
            metrics |= {f"{prefix}{name}": value for name, value in asdict(evaluation).items()}
        return {**metrics, **self._evaluate_zero_shot(final=final)}

    def _evaluate_zero_shot(self, *, final: bool) -> Mapping[str, float]:
        lm = MaskedLM.of_run(self.model, self.inputs.tokenizer, self.ranks)
        found: dict[str, float] = {}
        for file in self._zero_shot:
            found |= file.measure(lm, final=final)
        if found and not final and self.ranks.is_main:
            line = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print_line(f"    {line}", quiet=self.config.quiet)
        return {f"eval_{name}": value for name, value in found.items()}

    def _evaluate(self, validation: Examples, *, final: bool) -> Evaluation:
        ranks = self.ranks
        count = len(validation)
        rows = choose_rows(count, count if final else self.config.evaluate_rows)
        # All ranks evaluate the same number of batches, the last perhaps without effect: a sharded
        # model is gathered for each.
        batches = math.ceil(len(rows) / ranks.world_size / ROWS_PER_BATCH)
        parts = np.array_split(rows, batches * ranks.world_size)[ranks.rank :: ranks.world_size]
        with ranks.precision.autocast(ranks.device):
            sums = [self._sum(validation, part, rows) for part in parts]
        # One by one: how each is rounded must not depend on the number of sources.
        totals = [ranks.sum(parts.sum(0)) for parts in torch.stack(sums, dim=1)]
        return compute_metrics(torch.stack(totals), validation)

    def _sum(self, validation: Examples, part: Any, rows: Any) -> torch.Tensor:
        own = part if len(part) else rows[:1]
        return sum_metrics(self.model, validation, own, self._unigram) * min(1, len(part))

    def adaptation(self, old_texts: Mapping[str, Sequence[str]]) -> Adaptation | None:
        """On which texts the result is compared with the model of --init-from; None without it."""
        start = self.inputs.start
        if start is None:
            return None
        length: int = self.inputs.examples.config["max_seq_length"]
        tokenizer = self.inputs.tokenizer
        return Adaptation(start, tokenizer, length, self.validation[0], old_texts)

    def interval_metrics(self, terms: Sequence[float], tokens: int) -> Mapping[str, float]:
        """The share of tokens that were predicted since the last line of metrics."""
        return {"predicted_share": terms[0] / tokens}

    def on_metrics(self, line: Mapping[str, Any]) -> None:
        """Print when the longer examples start."""
        phase = line.get("phase", self._phase)
        if phase != self._phase:
            print_line(
                f"  by step {line['step']:,}: training on the longer examples",
                quiet=self.config.quiet,
            )
        self._phase = phase
