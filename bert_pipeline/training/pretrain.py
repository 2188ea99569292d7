"""`bertpipe pretrain`: put tokenizer, examples, model and optimizer together, train, evaluate, export."""

import ctypes
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining
from transformers.utils import logging as transformers_logging

from bert_pipeline.artifact import (
    Input,
    Manifest,
    Workspace,
    describe_input,
    explain_full_disk,
    read_manifest,
    workspace,
)
from bert_pipeline.errors import BertpipeError
from bert_pipeline.examples.schema import STAGE as EXAMPLES
from bert_pipeline.examples.splits import Split
from bert_pipeline.model.bert import FlatBatch, flat_forward
from bert_pipeline.model.initialize import COUNTED_TOKENS, initialize_informed
from bert_pipeline.model.presets import make_config
from bert_pipeline.progress import bar, print_pairs, say
from bert_pipeline.tokenizer.load import LoadedTokenizer, find_tokenizer, load_tokenizer
from bert_pipeline.tokenizer.save import lay_out_as_examples, save_pretrained
from bert_pipeline.training.batches import Examples, KeptMasks, Rows
from bert_pipeline.training.card import write_card
from bert_pipeline.training.checkpoint import Position, load_newest, save_checkpoint
from bert_pipeline.training.config import PretrainConfig
from bert_pipeline.training.evaluate import Evaluation, describe, sum_figures, summarise, unigram_log_probabilities
from bert_pipeline.training.loop import Hooks, MetricsLog, Step, Training, fit
from bert_pipeline.training.optimizer import Optimizers
from bert_pipeline.training.order import Cursor, Order, Plan, draw_rows
from bert_pipeline.training.row_store import FOLDER as STORE
from bert_pipeline.training.row_store import remove_store
from bert_pipeline.training.schedule import Length

STAGE = "pretrain"
CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.jsonl"


class PretrainingModel(nn.Module):
    """The stock model behind a forward pass that returns summed losses, as distributed wrappers want it."""

    def __init__(self, bert: BertForPreTraining | BertForMaskedLM) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, batch: FlatBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed masked-LM and next-sentence losses."""
        return flat_forward(self.bert, batch)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads."""

    phases: tuple[tuple[Path, Manifest], ...]
    """Folders of examples, in the order in which they are trained on."""
    tokenizer_folder: Path
    tokenizer: LoadedTokenizer
    model_config: BertConfig

    @classmethod
    def check(cls, config: PretrainConfig) -> "Inputs":
        """Read the manifests; raises `BertpipeError` where they do not belong together."""
        folder = find_tokenizer(config.tokenizer, quiet=config.quiet)
        tokenizer = load_tokenizer(folder)
        model_config = make_config(config.model, tokenizer.vocab_size, tokenizer.special.pad, config.dropout)
        given = [config.examples, *([config.long_examples] if config.long_examples else [])]
        inputs = cls(tuple((path, read_manifest(path, EXAMPLES)) for path in given), folder, tokenizer, model_config)
        for path, examples in inputs.phases:
            inputs._check_examples(path, examples, config)
        objectives = [examples.config["objective"] for _, examples in inputs.phases]
        if len(set(objectives)) > 1:
            raise BertpipeError(
                f"{config.long_examples} was made for {objectives[1]}, {config.examples} for {objectives[0]}. Make "
                "both for the same objective."
            )
        return inputs

    def _check_examples(self, path: Path, examples: Manifest, config: PretrainConfig) -> None:
        if examples.inputs["tokenizer"].fingerprint != self.tokenizer.manifest.fingerprint:
            raise BertpipeError(f"{path} was made with another tokenizer than {config.tokenizer}. Give that one.")
        rate = examples.config["mask_rate"]
        if config.mask_rate_end is not None and config.mask_rate_end > rate:
            raise BertpipeError(f"--mask-rate-end {config.mask_rate_end}: above the {rate} of {path}.")
        length, positions = examples.config["max_seq_length"], self.model_config.max_position_embeddings
        if length > positions:
            raise BertpipeError(
                f"{path} holds examples of up to {length} tokens, but the model has {positions} positions "
                "(max_position_embeddings). Make shorter examples or a model with more positions."
            )

    @property
    def examples(self) -> Manifest:
        """Those that the run begins with, and is evaluated on."""
        return self.phases[0][1]

    def describe(self, out: Path) -> dict[str, Input]:
        """The inputs' record for the manifest."""
        described = [describe_input(out, path, examples) for path, examples in self.phases]
        examples = dict(zip(("examples", "long_examples"), described, strict=False))
        return examples | {"tokenizer": describe_input(out, self.tokenizer_folder, self.tokenizer.manifest)}

    def open(self, phase: int, split: Split, config: PretrainConfig, store: Path) -> Examples:
        """The rows of a split in one of the folders."""
        vocab_size: int = self.model_config.vocab_size
        folder, examples = self.phases[phase]
        return Examples.open(folder, examples, split, vocab_size, seed=config.seed, store=store, quiet=config.quiet)


def pretrain(config: PretrainConfig) -> None:
    """Train to the end of the run's length, going on from the newest checkpoint if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `model/` to `config.out`. Every process of a distributed
    run calls this; the main one alone writes and prints.
    """
    accelerator = make_accelerator(config)
    inputs = Inputs.check(config)
    with ExitStack() as stack:
        work: Workspace | None = None
        if accelerator.is_main_process:
            work = stack.enter_context(workspace(STAGE, config, inputs.describe(config.out)))
        shared: list[Any] = [(work.folder, work.finished is not None) if work else None]
        broadcast_object_list(shared)
        folder, finished = shared[0]
        if not finished:
            Run(config, inputs, accelerator, folder, work).train()
        elif work and work.finished:
            say(f"pretrain: already complete in {config.out}", quiet=config.quiet)
            print_figures(work.finished.counts, config.quiet)
    if accelerator.num_processes > 1:
        accelerator.end_training()


class Run:
    """One process's part in a run."""

    def __init__(
        self, config: PretrainConfig, inputs: Inputs, accelerator: Accelerator, folder: Path, work: Workspace | None
    ) -> None:
        self.config, self.inputs, self.accelerator, self.folder, self.work = config, inputs, accelerator, folder, work
        self.main = accelerator.is_main_process
        store = folder / STORE
        self.examples = [inputs.open(phase, "train", config, store) for phase in range(len(inputs.phases))]
        held_out = inputs.examples.counts.get("validation_rows")
        self.validation = inputs.open(0, "validation", config, store) if held_out else None
        rates = [examples.config["mask_rate"] for _, examples in inputs.phases]
        self.last_mask_shares = [(config.mask_rate_end or rate) / rate for rate in rates]
        self.order, self._cursor = Order.of(config), Cursor()
        self.unigram = unigram_log_probabilities(config.examples)
        self.bert = self._make_model()
        self.optimizer = Optimizers(self.bert, config)

    def train(self) -> None:
        """Resume, fit, evaluate and export."""
        config, accelerator = self.config, self.accelerator
        start = self._resume()
        # Weights go to the device before, so that the optimizer's tensors are the model's.
        model = accelerator.prepare(PretrainingModel(self.bert))
        log = MetricsLog(self.folder / METRICS, start.step) if self.main else None
        hooks = Hooks(
            evaluate=lambda: self._evaluate(config.evaluate_rows),
            save=self._save,
            log=log.write if log else lambda values: None,
            log_every=config.log_every,
            evaluate_every=config.evaluate_every if self.validation else 2**62,
            checkpoint_every=config.checkpoint_every,
        )
        length = Length(config.max_steps, config.max_minutes and config.max_minutes * 60)
        training = Training(
            accelerator,
            model,
            self.optimizer,
            self._make_step,
            length,
            losses={"mlm_loss": 1.0, "nsp_loss": config.nsp_weight},
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
        )
        self._announce(start)
        total = config.max_steps or length.seconds
        with bar("pretraining", total, quiet=config.quiet or not self.main, counted=False) as progress:
            position = fit(training, start, hooks, progress)
        figures = self._evaluate(None) if self.validation else {}
        if figures:
            hooks.log({"step": position.step, **figures})
        if self.work:
            self._finish(self.work, position, figures)

    def _make_model(self) -> BertForPreTraining | BertForMaskedLM:
        torch.manual_seed(self.config.seed)
        examples = self.examples[0]
        bert = (BertForPreTraining if examples.has_pairs else BertForMaskedLM)(self.inputs.model_config)
        if self.config.initialization == "informed":
            tokens, offsets = examples.unmasked(COUNTED_TOKENS)
            initialize_informed(bert, tokens, offsets, self.unigram, self.inputs.tokenizer.special)
        return bert.to(self.accelerator.device)

    def _make_step(self, step: int, done: float) -> Step:
        # The loop knows steps alone: after a resume this holds for batches of one size from one folder.
        if self._cursor.step != step:
            self._cursor = Cursor(step, 0, step * self.config.batch_size)
        plan = self.order.plan(self._cursor, done)
        self._cursor = plan.next
        return self._make_planned_step(plan)

    def _make_planned_step(self, plan: Plan) -> Step:
        """This rank's share of a step, in as many parts as asked for, which may be empty."""
        examples, seed = self.examples[plan.phase], self.config.seed
        rows, epochs = draw_rows(len(examples), plan.first_row, plan.size, seed, plan.phase)
        keep = KeptMasks(1 - plan.done * (1 - self.last_mask_shares[plan.phase]), seed, plan.step)
        own = np.arange(self.accelerator.process_index, plan.size, self.accelerator.num_processes)
        parts = [
            examples.collate(rows[part], keep, epochs[part]) for part in np.array_split(own, self.config.accumulate)
        ]
        elsewhere = np.delete(np.arange(plan.size), own)
        masked = examples.count_masked(rows[elsewhere], keep, epochs[elsewhere])
        return Step(
            parts=parts,
            totals=(masked + sum(len(part.masked_labels) for part in parts), plan.size if examples.has_pairs else 0),
            tokens=examples.count_tokens(rows),
            epoch=int(epochs[0]),
        )

    def _resume(self) -> Position:
        found = load_newest(self.folder / CHECKPOINTS)
        if found is None:
            return Position()
        position, weights, state = found
        parameters = dict(self.bert.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        self.optimizer.load_state_tensors(state)
        return position

    def _save(self, position: Position) -> None:
        if self.main:
            weights = dict(self.bert.named_parameters())
            state = self.optimizer.state_tensors()
            save_checkpoint(self.folder / CHECKPOINTS, position, weights, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, most: int | None) -> Mapping[str, float]:
        assert self.validation is not None
        rows: Rows = np.arange(min(len(self.validation), most or len(self.validation)))
        own = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.accelerator.autocast():
            sums = sum_figures(self.bert, self.validation, own, self.unigram)
        evaluation = summarise(self.accelerator.reduce(sums, "sum"))
        if most and self.main:
            say(
                f"  held out: masked loss {evaluation.mlm_loss:.3f} (unigram {evaluation.unigram_loss:.3f}), "
                f"first guess right {evaluation.top1_accuracy:.1%}",
                quiet=self.config.quiet,
            )
        return {f"eval_{name}": value for name, value in asdict(evaluation).items()}

    def _announce(self, start: Position) -> None:
        if not self.main:
            return
        parameters = sum(p.numel() for p in self.bert.parameters())
        shape = self.inputs.model_config
        say(
            f"pretraining: {type(self.bert).__name__}, {shape.num_hidden_layers} layers × {shape.hidden_size}, "
            f"{parameters / 1e6:.1f} M parameters, on {self.accelerator.device} × {self.accelerator.num_processes}"
            + (f", going on from step {start.step:,}" if start.step else ""),
            quiet=self.config.quiet,
        )

    def _finish(self, work: Workspace, position: Position, figures: Mapping[str, float]) -> None:
        final, temporary = self.folder / MODEL, self.folder / f".{MODEL}.tmp"
        for leftover in (final, temporary):
            if leftover.exists():
                shutil.rmtree(leftover)
        with explain_full_disk(final):
            self.bert.save_pretrained(temporary)
            positions = self.inputs.model_config.max_position_embeddings
            save_pretrained(*lay_out_as_examples(self.inputs.tokenizer), temporary, positions)
            write_card(temporary, self.config, self.inputs.examples, position, figures)
            temporary.rename(final)
        counts = {"steps": position.step, "tokens": position.tokens, **figures}
        remove_store(self.folder / STORE)
        work.finish(counts, sorted(path for path in final.iterdir()))
        minutes = position.elapsed_s / 60
        say(
            f"pretrained: {position.step:,} steps, {position.tokens:,} tokens in {minutes:.1f} min "
            f"({position.tokens / position.elapsed_s:,.0f} tokens/s) → {self.config.out / MODEL}",
            quiet=self.config.quiet,
        )
        print_figures(counts, self.config.quiet)


def print_figures(counts: Mapping[str, Any], quiet: bool) -> None:
    """Print the final evaluation out of a manifest's counts, if there was one."""
    figures = {name.removeprefix("eval_"): value for name, value in counts.items() if name.startswith("eval_")}
    if figures:
        print_pairs("On held-out text", describe(Evaluation(**figures)), quiet=quiet)


def make_accelerator(config: PretrainConfig) -> Accelerator:
    """Accelerate for this machine's GPU or CPU, with fixed arithmetic."""
    transformers_logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(max(1, config.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        _keep_memory()
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and on_gpu and not has_bf16:
        raise BertpipeError("--precision bf16: this GPU has no bf16 arithmetic; use fp32.")
    use_bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    return Accelerator(mixed_precision="bf16" if use_bf16 else "no", cpu=not on_gpu)


def _keep_memory() -> None:
    """Keep glibc from handing large tensors back to the kernel and faulting them in again at every step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in (
            (-3, 1 << 30),
            (-1, 2**31 - 1),
            (-2, 256 << 20),
        ):  # mmap threshold, trim threshold, top pad
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass  # another C library: only slower
