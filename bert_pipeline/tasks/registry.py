"""The registry of tasks: what `--task` accepts, and the class of each, loaded when it is used."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_pipeline.tasks.read_rows import HUB, STDIN, Row, read_rows, suffix_of

TASKS = {
    "classification": "classification:Classification",
    "token-classification": "token_classification:TokenClassification",
    "question-answering": "question_answering:QuestionAnswering",
    "multiple-choice": "multiple_choice:MultipleChoice",
}
"""The module of this package and the class of each task (see `task.Task`)."""


def find_task(name: str) -> Any:
    """The class of a task."""
    module, _, task = TASKS[name].partition(":")
    return getattr(importlib.import_module(f"bert_pipeline.tasks.{module}"), task)


def read_task_rows(
    task: str, source: str, column_names: tuple[str, ...] = (), *, split: str = "train"
) -> Iterator[Row]:
    """The rows of a file in a format of the task, or in one that `read_rows` reads."""
    is_file = not source.startswith(HUB) and source != STDIN
    suffix = suffix_of(Path(source))
    if is_file and task == "token-classification" and suffix not in (".jsonl", ".json", ".parquet"):
        from bert_pipeline.tasks.token_classification import read_conll

        return read_conll(Path(source))
    if is_file and task == "question-answering" and suffix == ".json":
        from bert_pipeline.tasks.question_answering import read_squad

        return read_squad(Path(source))
    return read_rows(source, column_names, split=split)
