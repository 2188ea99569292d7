"""`bertpipe predict`: labels, tags, answers or choices for the rows of a file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.task_model import TaskModel
from bert_pipeline.predict.load import find_model, load_auto_tokenizer, load_config, load_model
from bert_pipeline.progress import bar, out
from bert_pipeline.storage.atomic import atomic
from bert_pipeline.tasks.encoded import Examples
from bert_pipeline.tasks.next_sentence import NextSentence
from bert_pipeline.tasks.read_rows import Row
from bert_pipeline.tasks.registry import find_task, read_task_rows
from bert_pipeline.tasks.scoring import group_by_length, join_scores, select_read

ROWS_AT_A_TIME = 1024
TOKENS_PER_BATCH = 4096
SHOWN_PROBLEMS = 3
FORMATS = (".jsonl", ".json")
HEADS = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}
"""Tasks by the ends of the names of stock classes."""
PAIR_HEADS = ("ForPreTraining", "ForNextSentencePrediction")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How rows are read, as the options of `bertpipe finetune` with these names."""

    text_field: tuple[str, ...] = ()
    label_field: str | None = None
    column_names: tuple[str, ...] = ()
    max_seq_length: int = 512


@dataclass(slots=True)
class PredictCounts:
    """How many rows were predicted, and how many could not be."""

    rows: int = 0
    bad_rows: int = 0
    problems: list[str] = field(default_factory=list)
    """What was wrong with the first bad rows."""

    def add(self, row: Row, problem: str | None) -> None:
        """Count a row."""
        self.rows += 1
        if problem is not None:
            self.bad_rows += 1
            if len(self.problems) < SHOWN_PROBLEMS:
                self.problems.append(f"{row.where}: {problem}")


class Predictor:
    """A fine-tuned model ready to predict, or a pretrained one for pairs of texts."""

    def __init__(self, model: str | Path, options: PredictOptions | None = None) -> None:
        """Raises `BertpipeError` if the folder has no model, or none with a head for a task."""
        self.options = options or PredictOptions()
        folder = find_model(Path(model))
        self._config = load_config(folder)
        self.task_name, self._kind = _find_kind(folder, self._config)
        self._tokenizer = load_auto_tokenizer(folder)
        most = count_positions(self._config) or self.options.max_seq_length
        self._max_length = min(self.options.max_seq_length, most)
        network = load_model(folder, getattr(transformers, self._kind.auto_class))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = TaskModel(network).to(self._device).eval()
        self._task: Any = None

    def predict(self, rows: Iterable[Row], counts: PredictCounts) -> Iterator[dict[str, Any]]:
        """The prediction for each row as a JSON object, in order.

        That of a row that cannot be predicted has an `error`. The columns are those of the first
        row; memory does not grow with the number of rows.
        """
        remaining = iter(rows)
        while part := list(islice(remaining, ROWS_AT_A_TIME)):
            problems, examples = self._encode_good(part)
            found = iter(self._predict(examples) if examples is not None else [])
            for row, problem in zip(part, problems, strict=True):
                counts.add(row, problem)
                yield next(found).to_json() if problem is None else {"error": problem}

    def predict_values(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The predictions for rows as mappings from columns to values, as `predict`."""
        numbered = (Row(f"row {number}", row) for number, row in enumerate(rows, start=1))
        return self.predict(numbered, PredictCounts())

    def _encode_good(self, rows: list[Row]) -> tuple[list[str | None], Examples | None]:
        """What is wrong with each row, and the examples of the others."""
        whole = [row for row in rows if row.problem is None]
        if self._task is None and whole:
            # Outside of what is counted as a bad row: a file with other columns is an error.
            settings = (self._config, self._tokenizer, self._max_length)
            self._task = self._kind.from_model(*settings, whole[0], self.options)
        if len(whole) == len(rows):
            try:
                return [None] * len(rows), self._encode(rows)
            except BertpipeError:  # which rows they are is found below
                pass
        problems = [self._find_problem(row) for row in rows]
        good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        return problems, self._encode(good) if good else None

    def _find_problem(self, row: Row) -> str | None:
        if row.problem is not None:
            return row.problem
        try:
            self._encode([row])
        except BertpipeError as error:
            return str(error).removeprefix(f"{row.where}: ")
        return None

    def _encode(self, rows: list[Row]) -> Examples:
        examples: Examples = self._task.encode(rows)
        return examples

    @torch.no_grad()
    def _predict(self, examples: Examples) -> Any:
        parts = []
        for group in group_by_length(examples, TOKENS_PER_BATCH):
            batch = examples.collate(group).to(self._device)
            scores = self._model(batch)
            if scores.isnan().any():
                raise BertpipeError("The model predicts NaN. Check its config.json.")
            parts.append((group, select_read(scores, examples, batch).cpu().numpy()))
        return self._task.decode(join_scores(examples, parts), examples)


def predict_file(
    model: str | Path,
    source: str,
    target: Path | None,
    options: PredictOptions,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> PredictCounts:
    """Predict the rows of a file and write them to `target`, or print them.

    `target` is a JSON lines file with an object per row, in order, or for question-answering a
    `.json` file of answers by id, which the script of SQuAD reads.
    """
    predictor = Predictor(model, options)
    by_id = target is not None and target.suffix == ".json"
    if target is not None and target.suffix not in FORMATS:
        raise UsageError(f"--out {target}: must be a .jsonl file.")
    if by_id and predictor.task_name != "question-answering":
        raise UsageError(f"--out {target}: .json is for answers; give a .jsonl file.")
    counts = PredictCounts()
    rows = read_task_rows(predictor.task_name, source, options.column_names, split="test")
    with ExitStack() as stack:
        file = None
        if target is not None:
            temporary = stack.enter_context(atomic(target))
            file = stack.enter_context(temporary.open("w", encoding="utf-8"))
        progress = stack.enter_context(bar("predicting", None, quiet=quiet or file is None))
        answers = {}
        for found in predictor.predict(rows, counts):
            progress.advance()
            if by_id:
                answers[found.get("id", str(counts.rows))] = found.get("answer", "")
            elif file is not None or as_json:
                print(json.dumps(found, ensure_ascii=False), file=file)
            else:
                out.print(format_prediction(found), markup=False)
        if by_id:
            json.dump(answers, file, ensure_ascii=False)  # type: ignore[arg-type]
    return counts


def format_prediction(found: dict[str, Any]) -> str:
    """A prediction as a line for people."""
    if "error" in found:
        return f"-       {found['error']}"
    if "entities" in found or "tags" in found:
        pairs = zip(found["tokens"], found["tags"], strict=True)
        return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in pairs)
    if "answer" in found:
        return f"{found['score']:7.2f} {found['answer'] or '(no answer)'}"
    label = found.get("label", found.get("choice", ""))
    return f"{found['score']:7.3f} {label}".rstrip()


def _find_kind(folder: Path, config: Any) -> tuple[str, Any]:
    """The name and the class of the task that a model has a head for."""
    names = [str(name) for name in config.architectures or []]
    for name in names:
        for ending, task in HEADS.items():
            if name.endswith(ending):
                return task, find_task(task)
        if name.endswith(PAIR_HEADS):
            return "classification", NextSentence
    raise BertpipeError(
        f"{folder}: {', '.join(names) or 'this model'} has no head to predict with. Fine-tune it "
        "first (bertpipe finetune), or use fill-mask or embed."
    )
