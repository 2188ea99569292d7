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
from transformers.utils import logging as transformers_logging

from bert_pipeline.artifact import Manifest, Workspace, describe_input, explain_full_disk, read_manifest, workspace
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.redraw import DynamicMasks
from bert_pipeline.examples.schema import STAGE as EXAMPLES
from bert_pipeline.model.initialize import check_informed, initialize_informed
from bert_pipeline.model.layer_calls import decide_compile
from bert_pipeline.model.presets import count_positions, make_config
from bert_pipeline.model.pretraining import PretrainingModel, check_objective, make_network
from bert_pipeline.progress import bar, print_pairs, say
from bert_pipeline.tokenizer.load import LoadedTokenizer, find_tokenizer, load_tokenizer
from bert_pipeline.tokenizer.save import lay_out_as_examples, save_pretrained
from bert_pipeline.training.batches import Examples, KeptMasks, Rows, step_epochs, step_rows
from bert_pipeline.training.card import write_card
from bert_pipeline.training.checkpoint import Position, load_newest, save_checkpoint
from bert_pipeline.training.config import PretrainConfig
from bert_pipeline.training.evaluate import Evaluation, describe, sum_figures, summarise, unigram_log_probabilities
from bert_pipeline.training.loop import Hooks, MetricsLog, Step, Training, fit
from bert_pipeline.training.optimizer import Optimizers
from bert_pipeline.training.schedule import Length

STAGE = "pretrain"
CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads."""

    examples: Manifest
    tokenizer_folder: Path
    tokenizer: LoadedTokenizer
    model_config: Any

    @classmethod
    def check(cls, config: PretrainConfig) -> "Inputs":
        """Read the manifests; raises `BertpipeError` where they do not belong together."""
        folder = find_tokenizer(config.tokenizer, quiet=config.quiet)
        examples, tokenizer = read_manifest(config.examples, EXAMPLES), load_tokenizer(folder)
        if examples.inputs["tokenizer"].fingerprint != tokenizer.manifest.fingerprint:
            raise BertpipeError(
                f"{config.examples} was made with another tokenizer than {config.tokenizer}. Give that one."
            )
        model_config = make_config(config.model, tokenizer.vocab_size, tokenizer.special, config.dropout)
        check_objective(model_config, examples.config["objective"])
        if config.initialization == "informed":
            check_informed(model_config)
        rate = examples.config["mask_rate"]
        if config.mask_rate_end is not None and config.mask_rate_end > rate:
            raise BertpipeError(f"--mask-rate-end {config.mask_rate_end}: above the {rate} of {config.examples}.")
        length, positions = examples.config["max_seq_length"], count_positions(model_config)
        if positions is not None and length > positions:
            raise BertpipeError(
                f"{config.examples} holds examples of up to {length} tokens, but the model has {positions} positions "
                "(max_position_embeddings). Make shorter examples or a model with more positions."
            )
        return cls(examples, folder, tokenizer, model_config)

    def shards(self, folder: Path, split: str) -> list[Path]:
        """The shards of one split."""
        return [folder / name for name in self.examples.files if name.startswith(f"{split}-")]


def pretrain(config: PretrainConfig) -> None:
    """Train to the end of the run's length, going on from the newest checkpoint if there is one.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `model/` to `config.out`. Every process of a distributed
    run calls this; the main one alone writes and prints.
    """
    accelerator = make_accelerator(config)
    inputs = Inputs.check(config)
    if config.batch_size % (accelerator.num_processes * config.accumulate):
        raise UsageError(
            f"--batch-size {config.batch_size} must be a multiple of processes × --accumulate "
            f"({accelerator.num_processes} × {config.accumulate})."
        )
    with ExitStack() as stack:
        work: Workspace | None = None
        if accelerator.is_main_process:
            sources = {
                "examples": describe_input(config.out, config.examples, inputs.examples),
                "tokenizer": describe_input(config.out, inputs.tokenizer_folder, inputs.tokenizer.manifest),
            }
            work = stack.enter_context(workspace(STAGE, config, sources))
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
        dynamic = DynamicMasks.of(inputs.examples, config.seed)
        self.examples = Examples(inputs.shards(config.examples, "train"), dynamic)
        held_out = inputs.shards(config.examples, "validation")
        self.validation = Examples(held_out) if inputs.examples.counts.get("validation_rows") else None
        rate = inputs.examples.config["mask_rate"]
        self.last_mask_share = (config.mask_rate_end or rate) / rate
        self.unigram = unigram_log_probabilities(config.examples)
        self.model = self._make_model()
        self.optimizer = Optimizers(self.model.network, config)

    def train(self) -> None:
        """Resume, fit, evaluate and export."""
        config, accelerator = self.config, self.accelerator
        start = self._resume()
        # Weights go to the device before, so that the optimizer's tensors are the model's.
        model = accelerator.prepare(self.model)
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

    def _make_model(self) -> PretrainingModel:
        torch.manual_seed(self.config.seed)
        network = make_network(self.inputs.model_config, with_pairs=self.examples.is_random_next is not None)
        if self.config.initialization == "informed":
            tokens, special = self.examples.unmasked(), self.inputs.tokenizer.special
            initialize_informed(network, tokens, self.examples.tokens.offsets, self.unigram, special)
        config, device = self.config, self.accelerator.device
        compiled = decide_compile(config.compile, device, config.max_steps, config.max_minutes)
        model = PretrainingModel(network, checkpoint_activations=config.checkpoint_activations, compiled=compiled)
        return model.to(device)

    def _make_step(self, step: int, done: float) -> Step:
        config, ranks = self.config, self.accelerator.num_processes
        rows = step_rows(len(self.examples), config.batch_size, config.seed, step)
        epochs = step_epochs(len(self.examples), config.batch_size, step)
        own = slice(self.accelerator.process_index, None, ranks)
        own_parts = zip(np.split(rows[own], config.accumulate), np.split(epochs[own], config.accumulate), strict=True)
        keep = KeptMasks(1.0 - done * (1.0 - self.last_mask_share), config.seed, step)
        pairs = config.batch_size if self.examples.is_random_next is not None else 0
        return Step(
            parts=[self.examples.collate(part, keep, part_epochs) for part, part_epochs in own_parts],
            totals=(self.examples.count_masked(rows, keep, epochs), pairs),
            tokens=int(self.examples.tokens.lengths(rows).sum()),
            epoch=int(epochs[0]),
        )

    def _resume(self) -> Position:
        found = load_newest(self.folder / CHECKPOINTS)
        if found is None:
            return Position()
        position, weights, state = found
        parameters = dict(self.model.network.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        self.optimizer.load_state_tensors(state)
        return position

    def _save(self, position: Position) -> None:
        if self.main:
            weights = dict(self.model.network.named_parameters())
            state = self.optimizer.state_tensors()
            save_checkpoint(self.folder / CHECKPOINTS, position, weights, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, most: int | None) -> Mapping[str, float]:
        assert self.validation is not None
        rows: Rows = np.arange(min(len(self.validation), most or len(self.validation)))
        own = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.accelerator.autocast():
            sums = sum_figures(self.model, self.validation, own, self.unigram)
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
        network = self.model.network
        parameters = sum(p.numel() for p in network.parameters())
        shape = self.inputs.model_config
        say(
            f"pretraining: {type(network).__name__}, {shape.num_hidden_layers} layers × {shape.hidden_size}, "
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
            self.model.network.save_pretrained(temporary)
            positions = count_positions(self.inputs.model_config)
            save_pretrained(*lay_out_as_examples(self.inputs.tokenizer), temporary, positions)
            write_card(temporary, self.config, self.inputs.examples, position, figures)
            temporary.rename(final)
        counts = {"steps": position.step, "tokens": position.tokens, **figures}
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
