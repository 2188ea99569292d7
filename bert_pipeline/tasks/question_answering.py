"""`question-answering`: the span of a context that answers a question (SQuAD 1.1 and 2.0).

Devlin et al. 2019, sections 4.2 and 4.3 (https://arxiv.org/abs/1810.04805): a start and an end are
scored at each token. A long context is read in overlapping windows. A question without an answer
has the span of `[CLS]`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.task_model import TaskBatch
from bert_pipeline.ragged import Array, Int64Array
from bert_pipeline.tasks.encoded import Examples, Ragged, encode_texts, text_of
from bert_pipeline.tasks.losses import grouped_log_softmax
from bert_pipeline.tasks.read_rows import Row, read_text
from bert_pipeline.tasks.squad import score_answers

DOC_STRIDE = 128
MAX_ANSWER_TOKENS = 30
"""For models of other tools, as the BERT release's run_squad.py."""
BEST = 20
"""Starts and ends of each window that are combined."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its context and right answers."""

    id: str
    context: str
    answers: tuple[str, ...] | None
    """Empty without an answer, None if that is unknown."""


@dataclass(frozen=True, slots=True)
class Window:
    """A row: a question with a part of its context."""

    question: Question
    spans: Int64Array
    """[tokens, 2] the characters of each token in the context; -1 for tokens outside of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question."""

    id: str
    text: str
    """Empty if the context has none."""
    score: float
    """The sum of the scores of start and end, less that of no answer."""
    start: int
    """Where the answer begins in the context, in characters."""

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return {"id": self.id, "answer": self.text, "score": self.score, "start": self.start}


@dataclass(frozen=True)
class QuestionAnswering:
    """Answers as spans of a context."""

    tokenizer: Any
    max_length: int
    stride: int
    max_answer_tokens: int
    fields: tuple[str, str]
    """The columns of questions and contexts."""
    has_unanswerable: bool = False
    """Whether a question may have no answer."""
    reads_answers: bool = True
    auto_class = "AutoModelForQuestionAnswering"
    metric = "f1"

    @classmethod
    def from_rows(cls, rows: Sequence[Row], tokenizer: Any, max_length: int, options: Any) -> Self:
        """The task that training rows set."""
        has_unanswerable = any(not _answers_of(row) for row in rows)
        fields = _choose_fields(rows[0], options)
        size = (max_length, options.doc_stride, options.max_answer_tokens)
        return cls(tokenizer, *size, fields, has_unanswerable)

    @classmethod
    def from_model(
        cls, config: Any, tokenizer: Any, max_length: int, first: Row, options: Any
    ) -> Self:
        """The task of a fine-tuned model."""
        size = (
            min(max_length, getattr(config, "max_seq_length", max_length)),
            getattr(config, "doc_stride", DOC_STRIDE),
            getattr(config, "max_answer_tokens", MAX_ANSWER_TOKENS),
        )
        has_unanswerable = bool(getattr(config, "has_unanswerable", False))
        return cls(tokenizer, *size, _choose_fields(first, options), has_unanswerable, False)

    def encode(self, rows: Iterable[Row]) -> Examples:
        """One example per window, labelled with the tokens of the first answer."""
        rows = list(rows)
        questions = [text_of(row, self.fields[0]).strip() for row in rows]
        contexts = [text_of(row, self.fields[1]) for row in rows]
        encoded = encode_texts(
            self.tokenizer,
            questions,
            contexts,
            self.max_length,
            truncation="only_second",
            stride=min(self.stride, self.max_length // 2),
            return_overflowing_tokens=True,
        )
        of_rows = encoded["overflow_to_sample_mapping"]
        known = [
            Question(str(row.values.get("id", number)), context, self._texts_of_answers(row))
            for number, (row, context) in enumerate(zip(rows, contexts, strict=True))
        ]
        windows = [
            Window(known[row], _context_spans(encoding))
            for row, encoding in zip(of_rows, encoded.encodings, strict=True)
        ]
        has_labels = all(question.answers is not None for question in known)
        labels = []
        if has_labels:
            pairs = zip(rows, contexts, strict=True)
            answers = [_first_answer(row, context) for row, context in pairs]
            labels = [
                _find_tokens(window.spans, answers[row])
                for window, row in zip(windows, of_rows, strict=True)
            ]
        return Examples(
            tokens=Ragged.from_lists(encoded["input_ids"], np.int32),
            segment_ids=Ragged.from_lists(encoded["token_type_ids"], np.int8),
            first_rows=np.arange(len(of_rows) + 1),
            labels=np.array(labels, np.int64).reshape(-1, 2) if has_labels else np.empty(0),
            reads_all=True,
            where=[rows[row].where for row in of_rows],
            extra=windows,
        )

    def _texts_of_answers(self, row: Row) -> tuple[str, ...] | None:
        answers = _answers_of(row) if self.reads_answers else None
        return None if answers is None else tuple(text for text, _ in answers)

    def loss(self, scores: Tensor, batch: TaskBatch) -> Tensor:
        """The mean cross-entropy of starts and ends over the tokens of each window."""
        shares = grouped_log_softmax(scores, batch.cu_seqlens)
        starts = batch.cu_seqlens[:-1]
        at_start = shares[starts + batch.labels[:, 0], 0]
        at_end = shares[starts + batch.labels[:, 1], 1]
        return -(at_start + at_end).sum() / 2

    def weight_of(self, batch: TaskBatch) -> float:
        """The number of windows."""
        return float(len(batch.labels))

    def decode(self, scores: Array, examples: Examples) -> list[Answer]:
        """The best span of all windows of each question."""
        best: dict[int, Answer] = {}
        none: dict[int, float] = {}
        questions: dict[int, Question] = {}
        offsets = examples.tokens.offsets
        for number, window in enumerate(examples.extra):
            own = scores[offsets[number] : offsets[number + 1]]
            key = id(window.question)
            questions[key] = window.question
            none[key] = min(none.get(key, np.inf), float(own[0].sum()))
            found = self._best_span(own, window)
            if found is not None and (key not in best or found.score > best[key].score):
                best[key] = found
        return [self._choose(questions[key], best.get(key), none[key]) for key in questions]

    def _choose(self, question: Question, best: Answer | None, none: float) -> Answer:
        if best is None or (self.has_unanswerable and none > best.score):
            return Answer(question.id, "", 0.0 if best is None else best.score - none, 0)
        return Answer(question.id, best.text, best.score - none, best.start)

    def _best_span(self, scores: Array, window: Window) -> Answer | None:
        """The span of a window with the highest sum of scores; None if it has no context."""
        tokens = (window.spans[:, 0] >= 0).nonzero()[0]
        if not len(tokens):
            return None
        starts = tokens[np.argsort(-scores[tokens, 0], kind="stable")[:BEST]]
        ends = tokens[np.argsort(-scores[tokens, 1], kind="stable")[:BEST]]
        sums = scores[starts, 0][:, None] + scores[ends, 1][None]
        lengths = ends[None] - starts[:, None] + 1
        is_valid = (lengths >= 1) & (lengths <= self.max_answer_tokens)
        if not is_valid.any():
            return None
        first, last = np.unravel_index(np.where(is_valid, sums, -np.inf).argmax(), sums.shape)
        begin = int(window.spans[starts[first], 0])
        end = int(window.spans[ends[last], 1])
        question = window.question
        text = question.context[begin:end]
        # A token may begin with the space before its word.
        begin += len(text) - len(text.lstrip())
        return Answer(question.id, text.strip(), float(sums[first, last]), begin)

    def measure(self, predictions: Sequence[Answer], examples: Examples) -> dict[str, float]:
        """Exact match and F1 in percent."""
        questions = {id(window.question): window.question for window in examples.extra}
        golds = [question.answers or () for question in questions.values()]
        return score_answers([answer.text for answer in predictions], golds)

    def groups(self, examples: Examples) -> Int64Array:
        """The windows of all questions on a context are a group."""
        contexts: dict[str, int] = {}
        numbers = [
            contexts.setdefault(window.question.context, len(contexts)) for window in examples.extra
        ]
        return np.array(numbers, np.int64)

    def config_fields(self) -> Mapping[str, Any]:
        """How contexts are divided, and whether a question may have no answer, for `predict`."""
        return {
            "has_unanswerable": self.has_unanswerable,
            "max_seq_length": self.max_length,
            "doc_stride": self.stride,
            "max_answer_tokens": self.max_answer_tokens,
        }

    def describe(self, examples: Examples) -> str:
        """The numbers of questions and windows."""
        questions = {id(window.question) for window in examples.extra}
        return f"{len(questions):,} questions in {len(examples):,} windows"


def read_squad(path: Path) -> Iterator[Row]:
    """The questions of a file in the format of SQuAD."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BertpipeError(f"{path}: not JSON ({error}).") from None
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    values = {"context": paragraph["context"], **question}
                    yield Row(f"{path}, question {question['id']}", values)
    except (KeyError, TypeError) as error:
        raise BertpipeError(
            f"{path}: not in the format of SQuAD, which has data, paragraphs, context, qas and id "
            f"({type(error).__name__}: {error})."
        ) from None


def _choose_fields(row: Row, options: Any) -> tuple[str, str]:
    question, context = (
        (*options.text_field, "question", "context")[:2]
        if len(options.text_field) == 2
        else ("question", "context")
    )
    for name in (question, context):
        if name not in row.values:
            raise BertpipeError(
                f"{row.where}: has no column {name!r}; it has {', '.join(row.values)}."
            )
    return question, context


def _answers_of(row: Row) -> list[tuple[str, int]] | None:
    """The texts of the right answers and where they begin; None if the row does not tell."""
    values = row.values
    answers = values.get("answers")
    if values.get("is_impossible"):
        return []
    if answers is None:
        return None
    try:
        if isinstance(answers, Mapping):  # columns of lists, as in the data sets of the Hub
            return list(zip(answers["text"], answers["answer_start"], strict=True))
        return [(answer["text"], answer["answer_start"]) for answer in answers]
    except (KeyError, TypeError, ValueError):
        raise BertpipeError(
            f"{row.where}: `answers` must have text and answer_start of each answer."
        ) from None


def _first_answer(row: Row, context: str) -> tuple[int, int] | None:
    """The first and the last character of the first answer, after checking it."""
    answers = _answers_of(row)
    if not answers:
        return None
    text, start = answers[0]
    if not isinstance(text, str) or not text or context[start : start + len(text)] != text:
        raise BertpipeError(
            f"{row.where}: the answer {text!r} is not in the context at character {start}."
        )
    return start, start + len(text) - 1


def _context_spans(encoding: Any) -> Int64Array:
    """The characters of each token in the context, -1 for tokens outside of it."""
    spans = np.array(encoding.offsets, np.int64)
    is_context = np.array([number == 1 for number in encoding.sequence_ids])
    is_context &= spans[:, 1] > spans[:, 0]
    spans[~is_context] = -1
    return spans


def _find_tokens(spans: Int64Array, answer: tuple[int, int] | None) -> tuple[int, int]:
    """The first and last token of an answer; (0, 0), `[CLS]`, unless the window has all of it."""
    if answer is None:
        return 0, 0
    first, last = answer
    starts = ((spans[:, 0] <= first) & (first < spans[:, 1])).nonzero()[0]
    ends = ((spans[:, 0] <= last) & (last < spans[:, 1])).nonzero()[0]
    return (int(starts[0]), int(ends[-1])) if len(starts) and len(ends) else (0, 0)
