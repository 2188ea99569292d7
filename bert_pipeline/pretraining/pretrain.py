"""`bertpipe pretrain`: put tokenizer, examples, model and optimizer together, train, evaluate, export."""

import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from bert_pipeline.config import flag
from bert_pipeline.errors import BertpipeError, LostRank, ReportedByMain, Stopped
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.compile import decide_compile
from bert_pipeline.model.flops import training_flops
from bert_pipeline.model.initialization import COUNTED_TOKENS, initialize_informed
from bert_pipeline.model.pretraining_model import PretrainingModel, make_network
from bert_pipeline.pretraining.batches import KeptMasks
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import (
    ROWS_A_BATCH,
    sum_figures,
    summarise,
    unigram_log_probabilities,
)
from bert_pipeline.pretraining.memmap_rows import FOLDER as STORE
from bert_pipeline.pretraining.memmap_rows import remove_store
from bert_pipeline.pretraining.model_card import write_card
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.pretraining.sampler import Cursor, Order, draw_rows
from bert_pipeline.pretraining.skipped_batches import write_aside
from bert_pipeline.pretraining.summary import announce, print_figures, summarise_run
from bert_pipeline.progress import bar, print_line
from bert_pipeline.ragged import Int64Array
from bert_pipeline.storage.atomic import explain_full_disk
from bert_pipeline.storage.workspace import Workspace, workspace
from bert_pipeline.tokenizer.save import lay_out_as_examples, save_pretrained
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.distributed import Ranks, distribute, find_strategy, make_accelerator
from bert_pipeline.training.hardware import find_peak, peak_memory
from bert_pipeline.training.loop import Hooks, Training, fit
from bert_pipeline.training.metrics import Account, MetricsLog
from bert_pipeline.training.optimizers import Optimizers
from bert_pipeline.training.profile import Profiler
from bert_pipeline.training.schedule import Length
from bert_pipeline.training.state import TrainingState
from bert_pipeline.training.step import Step, Trainer
from bert_pipeline.training.trackers import Trackers, check_trackers

STAGE = "pretrain"
LOST = (
    "onnection closed by peer",
    "onnection reset by peer",
    "remote process exited",
    "roken pipe",
)
"""What gloo and NCCL say when a process they talk to has gone."""
CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.jsonl"


def pretrain(config: PretrainConfig) -> None:
    """Train to the end of the run's length, going on from the newest checkpoint if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `model/` to `config.out`. Every process of a distributed
    run calls this; the main one alone writes and prints.
    """
    transformers_logging.disable_progress_bar()
    ranks = Ranks.of(make_accelerator(config))
    try:
        with ExitStack() as stack:
            _pretrain(config, ranks, stack)
    except Stopped:
        ranks.accelerator.end_training()
        raise
    except torch.OutOfMemoryError as error:
        raise BertpipeError(
            f"The GPU has not enough memory. Run the same command with --accumulate {2 * config.accumulate}, to work "
            "through each step in smaller parts, or with --checkpoint-activations; or start anew (--overwrite) with a "
            "smaller --batch-size."
        ) from error
    except RuntimeError as error:
        if ranks.count == 1 or not any(words in str(error) for words in LOST):
            raise
        raise LostRank(
            "Another process of the run is gone, or its host out of reach; see what it said. Once all are there again, "
            f"the same commands go on from the last checkpoint. ({str(error).splitlines()[0][:200]})"
        ) from error
    ranks.accelerator.end_training()


def _pretrain(config: PretrainConfig, ranks: Ranks, stack: ExitStack) -> None:
    work: Workspace | None = None

    def begin() -> tuple[Path, bool]:
        nonlocal work
        check_trackers(config.tracker)
        sources = Inputs.check(config).describe(config.out)
        work = stack.enter_context(workspace(STAGE, config, sources))
        return work.folder, work.finished is not None

    _check_alike(config, ranks)
    folder, finished = ranks.share(begin)
    if not finished:
        Run(config, Inputs.check(config), ranks, folder, work).train()
    elif work and work.finished:
        print_line(f"pretrain: already complete in {config.out}", quiet=config.quiet)
        print_figures(work.finished.counts, config.quiet)


def _check_alike(config: PretrainConfig, ranks: Ranks) -> None:
    """Raise `UsageError` where launchers were given other options: ranks would train apart, or wait for ever."""
    own = config.together()
    told = ranks.share(lambda: own)
    different = sorted(name for name in own if own[name] != told[name])
    apart = ranks.gather([float(bool(different))])[:, 0].nonzero()[:, 0].tolist()
    if different:
        option = flag(different[0])
        raise BertpipeError(
            f"{option} is {own[different[0]]} here and {told[different[0]]} in the main process."
        )
    if apart:
        ranks_apart = ", ".join(str(rank) for rank in apart)
        raise (
            ReportedByMain(1)
            if not ranks.main
            else BertpipeError(
                f"The launchers were given different options (see rank {ranks_apart}); give all of them the same."
            )
        )


class Run:
    """One process's part in a run."""

    def __init__(
        self,
        config: PretrainConfig,
        inputs: Inputs,
        ranks: Ranks,
        folder: Path,
        work: Workspace | None = None,
    ) -> None:
        self.config, self.inputs, self.ranks, self.folder, self.work = (
            config,
            inputs,
            ranks,
            folder,
            work,
        )
        store = folder / STORE
        self.examples = [
            inputs.open(phase, "train", config, store) for phase in range(len(inputs.phases))
        ]
        held_out = inputs.examples.counts.get("validation_rows")
        self.validation = inputs.open(0, "validation", config, store) if held_out else None
        rates = [examples.config["mask_rate"] for _, examples in inputs.phases]
        self.last_mask_shares = [(config.mask_rate_end or rate) / rate for rate in rates]
        self.order = Order.of(config)
        self.unigram = unigram_log_probabilities(config.examples)
        most_tokens = config.batch_size * inputs.examples.config["max_seq_length"]
        steps = config.max_steps or (config.max_tokens and config.max_tokens // most_tokens)
        compiled = decide_compile(
            config.compile, ranks.accelerator.device, steps, config.max_minutes
        )
        self.model = PretrainingModel(
            self._make_network(),
            checkpoint_activations=config.checkpoint_activations,
            compiled=compiled,
        )
        # Sharding replaces parameters: what is trained and its optimizer come afterwards.
        trained = distribute(self.model, self.model.layers, ranks, find_strategy(config))
        self.network: PreTrainedModel = self.model.network
        optimizer = Optimizers(self.network, config)
        self.state = TrainingState(
            ranks, self.network, optimizer, folder / CHECKPOINTS, config.keep_checkpoints
        )
        losses = {"mlm_loss": 1.0, "nsp_loss": config.nsp_weight}
        self.trainer = Trainer(ranks, trained, optimizer, losses, config.seed)

    def train(self) -> None:
        """Resume, fit, evaluate and export."""
        config, main = self.config, self.ranks.main
        start = self.state.load_newest(quiet=config.quiet) or Position()
        length = Length(
            config.max_steps, config.max_tokens, config.max_minutes and config.max_minutes * 60
        )
        complete = length.progress(start.step, start.tokens, start.elapsed_s) >= 1.0
        log = MetricsLog(self.folder / METRICS, start.step, complete=complete) if main else None
        trackers = Trackers(self.ranks.accelerator, config, self.folder, start.step)
        profiler = Profiler(self.folder) if config.profile and main else None

        phase = start.phase

        def write_metrics(line: Mapping[str, Any]) -> None:
            nonlocal phase
            if line.get("phase", phase) != phase:
                phase = line["phase"]
                print_line(
                    f"  by step {line['step']:,}: the longer examples have begun",
                    quiet=config.quiet or not main,
                )
            if "loss" in line:
                line = {**line, "peak_memory_bytes": peak_memory(self.ranks.accelerator.device)}
            if log:
                log.write(line)
            trackers.log(line)

        hooks = Hooks(
            evaluate=lambda: self._evaluate(config.evaluate_rows),
            save=self.state.save,
            settle=self.state.settle,
            has_failed=self.state.has_failed,
            restore=self._go_back,
            write_aside=self._write_aside,
            log=write_metrics,
            tick=profiler.tick if profiler else lambda: None,
            log_every=config.log_every,
            evaluate_every=config.evaluate_every if self.validation else 2**62,
            checkpoint_every=config.checkpoint_every,
        )
        device, bf16 = (
            self.ranks.accelerator.device,
            self.ranks.accelerator.mixed_precision == "bf16",
        )
        peak = find_peak(device, bf16=bf16)
        training = Training(
            self.trainer,
            self._make_step,
            length,
            config.max_bad_steps,
            peak and peak * self.ranks.count,
        )
        if main:
            announce(self.network, self.ranks, start, quiet=config.quiet)
        progress_bar = bar("pretraining", 1.0, quiet=config.quiet or not main, counted=False)
        with closing(self.state), progress_bar as progress:
            position, account = fit(training, start, hooks, progress)
        if profiler:
            print_line(profiler.finish(), quiet=config.quiet)
        figures = self._evaluate(None) if self.validation else {}
        if figures:
            write_metrics({"step": position.step, **figures})
        self._finish(position, account, training.peak_flops, figures)

    def _make_step(self, position: Position, done: float) -> Step:
        """This rank's share of the step at a position."""
        plan = self.order.plan(Cursor(position.step, position.phase, position.rows), done)
        examples, config, ranks = self.examples[plan.phase], self.config, self.ranks
        rows, epochs = draw_rows(len(examples), plan.first_row, plan.size, config.seed, plan.phase)
        keep = KeptMasks(1 - done * (1 - self.last_mask_shares[plan.phase]), config.seed, plan.step)
        own = np.array_split(np.arange(ranks.own, plan.size, ranks.count), config.accumulate)
        parts = [examples.collate(rows[part], keep, epochs[part]) for part in own if len(part)]
        pairs = sum(len(part) for part in own) if examples.has_pairs else 0
        masked = sum(len(part.masked_labels) for part in parts)
        flops = [training_flops(self.network.config, part) for part in parts]
        if len(parts) < len(
            own
        ):  # fewer examples than ranks × parts: everyone still takes part in the sums
            parts += [replace(examples.collate(rows[:1], keep, epochs[:1]), void=True)] * (
                len(own) - len(parts)
            )
        if ranks.accelerator.device.type == "cuda":
            parts = [part.pin() for part in parts]
        tokens = examples.count_tokens(rows)
        after = plan.next
        return Step(
            parts=parts,
            totals=(masked, pairs),
            tokens=tokens,
            examples=plan.size,
            epoch=int(epochs[0]),
            flops=None if None in flops else sum(flop for flop in flops if flop is not None),
            next=replace(
                position,
                step=after.step,
                phase=after.phase,
                rows=after.rows,
                tokens=position.tokens + tokens,
            ),
            origin=(plan.phase, rows, keep, epochs),
        )

    def _make_network(self) -> PreTrainedModel:
        torch.manual_seed(self.config.seed)
        examples = self.examples[0]
        network = make_network(self.inputs.model_config, with_pairs=examples.has_pairs)
        if self.config.initialization == "informed":
            tokens, offsets = examples.unmasked(COUNTED_TOKENS)
            initialize_informed(
                network, tokens, offsets, self.unigram, self.inputs.tokenizer.special
            )
        return network

    def _go_back(self, step: int) -> None:
        """To the weights of the last regular checkpoint, or to the first ones, because steps up to `step` were bad.

        Those of a stop do not count, so that a run that was stopped goes back to where one left alone does.
        """
        position = self.state.load_newest(regular=True)
        if position is None:
            self.state.reset(dict(self._make_network().named_parameters()))
        print_line(
            f"  step {step:,}: loss or gradient not finite {self.config.max_bad_steps} times in a row; back to the "
            f"weights of step {position.step if position else 0:,}, and on past these batches",
            quiet=self.config.quiet or not self.ranks.main,
        )

    def _write_aside(self, number: int, step: Step) -> None:
        if not self.ranks.main:
            return
        phase, rows, keep, epochs = step.origin
        path = write_aside(
            self.folder, number, self.examples[phase].collate(rows, keep, epochs), rows
        )
        print_line(
            f"  step {number:,} left out: loss or gradient not finite; its batch is in {path.relative_to(self.folder)}",
            quiet=self.config.quiet,
        )

    def _evaluate(self, most: int | None) -> Mapping[str, float]:
        assert self.validation is not None
        rows: Int64Array = np.arange(min(len(self.validation), most or len(self.validation)))
        ranks = self.ranks
        # Everyone evaluates as many batches, the last perhaps for nothing: a sharded model is put together for each.
        batches = math.ceil(len(rows) / ranks.count / ROWS_A_BATCH)
        parts = np.array_split(rows, batches * ranks.count)[ranks.own :: ranks.count]
        with ranks.accelerator.autocast():
            sums = [
                sum_figures(
                    self.model, self.validation, part if len(part) else rows[:1], self.unigram
                )
                * min(1, len(part))
                for part in parts
            ]
        evaluation = summarise(ranks.sum(torch.stack(sums).sum(0)))
        if most and ranks.main:
            print_line(
                f"  held out: masked loss {evaluation.mlm_loss:.3f} (unigram {evaluation.unigram_loss:.3f}), "
                f"first guess right {evaluation.top1_accuracy:.1%}",
                quiet=self.config.quiet,
            )
        return {f"eval_{name}": value for name, value in asdict(evaluation).items()}

    def _finish(
        self, position: Position, account: Account, peak: float | None, figures: Mapping[str, float]
    ) -> None:
        weights = self.state.gather_weights()
        if self.work is None:
            return
        final, temporary = self.folder / MODEL, self.folder / f".{MODEL}.tmp"
        for leftover in (final, temporary):
            if leftover.exists():
                shutil.rmtree(leftover)
        with explain_full_disk(final):
            export = make_network(self.inputs.model_config, with_pairs=self.examples[0].has_pairs)
            with torch.no_grad():
                for name, parameter in export.named_parameters():
                    parameter.copy_(weights[name])
            export.save_pretrained(temporary)
            positions = count_positions(self.inputs.model_config)
            save_pretrained(*lay_out_as_examples(self.inputs.tokenizer), temporary, positions)
            write_card(temporary, self.config, self.inputs.examples, position, figures)
            temporary.rename(final)
        remove_store(self.folder / STORE)
        counts = {
            "steps": position.step,
            "tokens": position.tokens,
            "elapsed_s": position.elapsed_s,
            "skipped_steps": position.skipped,
            **account.rates(peak),
            "peak_memory_bytes": peak_memory(self.ranks.accelerator.device),
            **figures,
        }
        self.work.finish(counts, sorted(path for path in final.iterdir()))
        summarise_run(self.config, position, account, self.ranks, peak)
        print_figures(counts, self.config.quiet)
