"""Named entities from frozen features: the second approach of Devlin et al. 2019, section 5.3.

The weights of the model do not change. Its hidden states, of the first token of each word, are
computed once and are the inputs of a new two-layer BiLSTM with a classifier
(https://arxiv.org/abs/1810.04805). Files are in the CoNLL format. The epoch with the best
validation metric is measured on the test file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from transformers import AutoModel

from bert_pipeline.config import available_cores
from bert_pipeline.errors import BertpipeError
from bert_pipeline.finetuning.inputs import find_max_length
from bert_pipeline.model.attention import PaddedLayout
from bert_pipeline.model.unpadded import UNPADDED_BODIES, UnpaddedEncoder
from bert_pipeline.predict.load import (
    find_model,
    load_auto_tokenizer,
    load_config,
    load_with_new_heads,
)
from bert_pipeline.progress import print_line, print_table
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.read_rows import Row
from bert_pipeline.tasks.scoring import group_by_length, join_scores
from bert_pipeline.tasks.token_classification import TokenClassification, read_conll

TOKENS_PER_BATCH = 4096
LAYERS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "last4": lambda states: torch.cat(tuple(states[1:][-4:]), -1),
    "sum4": lambda states: torch.stack(tuple(states[1:][-4:])).sum(0),
    "last": lambda states: states[-1],
    "second-to-last": lambda states: states[-2],
    "embeddings": lambda states: states[0],
}
"""Features from the embeddings and the output of each layer; `last4` is a concatenation."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Split:
    """The texts of a file."""

    examples: Examples
    features: list[Tensor]
    """Of each text `[words, features]`."""
    labels: list[Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the BiLSTM is trained."""

    hidden: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    device: torch.device


class Tagger(nn.Module):
    """A two-layer BiLSTM and a classifier of its states."""

    def __init__(self, features: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, 2, bidirectional=True, batch_first=True)
        self.output = nn.Linear(2 * hidden, labels)

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        """Scores of the words of all texts, end to end."""
        packed, _ = self.lstm(pack_sequence(list(texts), enforce_sorted=False))
        states, lengths = pad_packed_sequence(packed, batch_first=True)
        own = [row[:length] for row, length in zip(states, lengths.tolist(), strict=True)]
        scores: Tensor = self.output(torch.cat(own))
        return scores


def make_encoder(body: Any) -> Callable[[Any], Sequence[Tensor]]:
    """A function of a batch that returns the embeddings and the output of each layer."""
    if isinstance(body, UNPADDED_BODIES):
        encoder = UnpaddedEncoder(body, checkpoint_activations=False, compiled=False)
        return lambda batch: list(encoder.hidden_states(batch))

    def run_stock(batch: Any) -> Sequence[Tensor]:
        layout = PaddedLayout.from_batch(batch, batch.head_positions)
        output = body(
            input_ids=layout.pad(batch.tokens, body.config.pad_token_id or 0),
            attention_mask=layout.pad(torch.ones_like(batch.tokens)),
            output_hidden_states=True,
        )
        flat = [state.flatten(0, 1) for state in output.hidden_states]
        return flat if layout.slots is None else [state[layout.slots] for state in flat]

    return run_stock


@torch.no_grad()
def make_split(body: Any, examples: Examples, layers: str, device: torch.device) -> Split:
    """The features and labels of examples."""
    assert examples.read is not None
    encode = make_encoder(body)
    parts = []
    for group in group_by_length(examples, TOKENS_PER_BATCH):
        batch = examples.collate(group).to(device)
        read = batch.head_positions.index[batch.head_positions.others]
        states = [state[read] for state in encode(batch)]
        parts.append((group, LAYERS[layers](states).cpu().numpy()))
    ends = torch.from_numpy(examples.read.offsets[examples.first_rows[1:-1]])
    features = torch.from_numpy(join_scores(examples, parts))
    labels = torch.from_numpy(examples.labels)
    return Split(examples, list(features.tensor_split(ends)), list(labels.tensor_split(ends)))


def train(
    task: TokenClassification, splits: dict[str, Split], settings: Settings
) -> dict[str, float]:
    """Train a tagger; the metric of each split in the best epoch on `validation`."""
    torch.manual_seed(settings.seed)
    data = splits["train"]
    usable = [number for number, labels in enumerate(data.labels) if len(labels)]
    width = data.features[usable[0]].shape[1]
    tagger = Tagger(width, settings.hidden, len(task.labels.names)).to(settings.device)
    optimizer = torch.optim.Adam(tagger.parameters(), settings.learning_rate)
    best: dict[str, float] = {}
    for epoch in range(1, settings.epochs + 1):
        order = [usable[place] for place in torch.randperm(len(usable)).tolist()]
        for first in range(0, len(order), settings.batch_size):
            rows = order[first : first + settings.batch_size]
            scores = tagger([data.features[row].to(settings.device) for row in rows])
            labels = torch.cat([data.labels[row] for row in rows]).to(settings.device)
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            optimizer.step()
        found = {
            name: measure(task, tagger, split, settings)
            for name, split in splits.items()
            if name != "train"
        }
        print_line(f"  epoch {epoch}: validation {task.metric} {found['validation']:.3f}")
        if not best or found["validation"] > best["validation"]:
            best = found
    return best


@torch.no_grad()
def measure(task: TokenClassification, tagger: Tagger, split: Split, settings: Settings) -> float:
    """The metric of the task: entity F1, or accuracy without entities."""
    texts = [text.to(settings.device) for text in split.features if len(text)]
    size = settings.batch_size
    scores = [tagger(texts[first : first + size]) for first in range(0, len(texts), size)]
    predictions = task.decode(torch.cat(scores).cpu().numpy(), split.examples)
    return task.measure(predictions, split.examples)[task.metric]


def read_all(path: Path) -> list[Row]:
    """The sentences of a CoNLL file."""
    rows = list(read_conll(path))
    for row in rows:
        if row.problem is not None:
            raise BertpipeError(f"{row.where}: {row.problem}.")
    if not rows:
        raise BertpipeError(f"{path}: has no sentences.")
    return rows


@app.command(help=__doc__)
def main(
    model: Annotated[Path, typer.Argument(help="Model folder, or the folder of a run.")],
    train_file: Annotated[Path, typer.Option("--train", help="Sentences to train on.")],
    validation: Annotated[Path, typer.Option(help="Sentences that select the epoch.")],
    test: Annotated[Path, typer.Option(help="Sentences to measure on.")],
    layers: Annotated[
        Literal["last4", "sum4", "last", "second-to-last", "embeddings"],
        typer.Option(help="Features: the last four layers concatenated or summed, or one layer."),
    ] = "last4",
    hidden: Annotated[int, typer.Option(help="Size of the LSTM in each direction.")] = 768,
    epochs: Annotated[int, typer.Option(help="Passes over the training file.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Sentences per step.", min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    max_seq_length: Annotated[int, typer.Option(help="Tokens that the model reads at once.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of random weights and of the order.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = available_cores(),
    random: Annotated[
        bool, typer.Option("--random", help="Also with random weights instead of the model's.")
    ] = False,
) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(hidden, epochs, batch_size, learning_rate, seed, device)
    folder = find_model(model)
    rows = {"train": train_file, "validation": validation, "test": test}
    sentences = {name: read_all(path) for name, path in rows.items()}
    task = TokenClassification.from_rows(
        sentences["train"],
        load_auto_tokenizer(folder),
        min(max_seq_length, find_max_length(folder)),
        SimpleNamespace(text_field=(), label_field=None),
    )
    examples = {name: task.encode(found) for name, found in sentences.items()}
    lines = []
    for weights in ("pretrained", *(["random"] if random else [])):
        print_line(f"{weights} weights, features: {layers}")
        body = _load(folder, weights, seed).to(device).eval()
        splits = {name: make_split(body, found, layers, device) for name, found in examples.items()}
        best = train(task, splits, settings)
        lines.append((weights, f"{best['validation']:.4f}", f"{best['test']:.4f}"))
    header = ("weights", f"validation {task.metric}", f"test {task.metric}")
    print_table(f"BiLSTM on frozen features ({layers})", header, lines)


def _load(folder: Path, weights: str, seed: int) -> Any:
    if weights == "pretrained":
        return load_with_new_heads(folder, AutoModel)[0]
    torch.manual_seed(seed)
    return AutoModel.from_config(load_config(folder), dtype=torch.float32)


if __name__ == "__main__":
    app()
