"""Cloze probes: rank and probability as the fill-mask pipeline gives them, files, the command."""

import json
import math
from pathlib import Path

import pytest

from bert_pipeline import evaluate_cloze
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.predict.fill_mask import MaskFiller
from bert_pipeline.pretraining.zero_shot.probes import read_probes
from tests.helpers.cli import run_cli
from tests.helpers.random_models import save_random_model
from tests.helpers.text import write_rows

TEXTS = ("A [MASK] here.", "[MASK] and more words, many of them", "In un[MASK]able things")


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
def test_rank_and_probability_are_those_of_fill_mask(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = save_random_model(tmp_path / "model", request.getfixturevalue(f"{kind}_folder"))
    filler = MaskFiller(model)
    ranked = list(filler.fill_each(TEXTS, 100))
    path = tmp_path / "probes.jsonl"
    expected = []
    rows = []
    for number, (text, [candidates]) in enumerate(zip(TEXTS, ranked, strict=True)):
        words = [candidate["token_str"].strip().casefold() for candidate in candidates]
        place = next(
            at for at in range(3 * number, 100) if words[at] and words.index(words[at]) == at
        )
        rows.append({"text": text, "expect": [words[place].upper(), "zzyzx"]})
        same = [
            candidate["score"]
            for candidate in next(filler.fill_each([text], 290))[0]
            if candidate["token_str"].strip().casefold() == words[place]
        ]
        expected.append((place + 1, sum(same)))
    write_rows(path, rows)
    found = evaluate_cloze(model, path)
    for answer, (rank, probability), [candidates] in zip(
        found.answers, expected, ranked, strict=True
    ):
        assert answer.rank == rank
        assert answer.probability == pytest.approx(probability, rel=1e-4)
        assert answer.log_probability == pytest.approx(math.log(probability), rel=1e-4)
        shown = [candidate["token_str"].strip() for candidate in candidates[:5]]
        assert list(answer.predictions) == shown
    ranks = [rank for rank, _ in expected]
    assert found.top1_accuracy.value == pytest.approx(sum(rank == 1 for rank in ranks) / 3)
    assert found.top5_accuracy.value == pytest.approx(sum(rank <= 5 for rank in ranks) / 3)
    assert found.mean_reciprocal_rank.value == pytest.approx(sum(1 / rank for rank in ranks) / 3)


def test_word_that_is_no_token_counts_as_not_found(wordpiece_folder: Path, tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model", wordpiece_folder)
    path = tmp_path / "probes.jsonl"
    write_rows(path, [{"text": "A [MASK].", "expect": "a"}, {"text": "[MASK]", "expect": "zzyzx"}])
    found = evaluate_cloze(model, path)
    assert found.not_in_vocabulary == 1
    known, unknown = found.answers
    assert (unknown.rank, unknown.probability, unknown.log_probability) == (None, 0.0, None)
    assert known.rank is not None
    assert found.mean_reciprocal_rank.value == pytest.approx(1 / known.rank / 2)
    assert found.log_probability is not None
    assert found.log_probability.value == known.log_probability


def test_recipe_and_tables_give_the_same_probes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "corpus: {}\nprobes:\n  - {text: 'A [MASK].', expect: cat}\n"
        "  - {text: '[MASK]!', expect: [hi, ho]}\n"
    )
    (tmp_path / "a.tsv").write_text("text\texpect\nA [MASK].\tcat\n")
    first, second = read_probes(tmp_path / "a.yaml")
    [same] = read_probes(tmp_path / "a.tsv")
    assert (first.text, first.expect) == (same.text, same.expect) == ("A [MASK].", ("cat",))
    assert second.expect == ("hi", "ho")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "no mask", "expect": "a"}', "must be a text with one [MASK]"),
        ('{"text": "[MASK] [MASK]", "expect": "a"}', "must be a text with one [MASK]"),
        ('{"text": "[MASK]", "expect": []}', "line 2: expect must be a word"),
        ('{"text": "[MASK]", "word": "a"}', "found text, word"),
    ],
)
def test_broken_probe_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text('{"text": "A [MASK].", "expect": "a"}\n' + line)
    with pytest.raises(UsageError) as refused:
        read_probes(path)
    assert said in str(refused.value)


def test_probe_longer_than_the_model_is_refused(wordpiece_folder: Path, tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model", wordpiece_folder)
    path = tmp_path / "probes.jsonl"
    write_rows(path, [{"text": "word " * 50 + "[MASK]", "expect": "a"}])
    with pytest.raises(BertpipeError, match=r"line 1: \d+ tokens, more than the model's 40"):
        evaluate_cloze(model, path)


def test_command_prints_metrics_and_predictions(wordpiece_folder: Path, tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model", wordpiece_folder)
    path = tmp_path / "probes.jsonl"
    write_rows(path, [{"text": "A [MASK].", "expect": "a"}] * 25)
    printed = run_cli("evaluate", model, "--cloze", path)
    assert printed.code == 0, printed.stderr
    assert printed.stdout.count("A [a].") == 20
    assert "and 5 more" in printed.stdout
    assert "mean reciprocal rank" in printed.stdout
    found = json.loads(run_cli("evaluate", model, "--cloze", path, "--json").stdout)
    assert found["probes"] == 25
    assert found["answers"][0]["expect"] == ["a"]
