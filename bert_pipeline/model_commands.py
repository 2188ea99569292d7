"""The commands that use a model, one short function each."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bert_pipeline import api
from bert_pipeline.config import flags
from bert_pipeline.errors import UsageError

app = typer.Typer()
"""Its commands become those of `cli.app`."""

Model = Annotated[
    Path, typer.Argument(help="Model folder, or the folder of the run.", show_default=False)
]
Input = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="File, or - for standard input."),
]
Encoding = Annotated[
    str | None,
    typer.Option(help="Encoding of a file that is not UTF-8.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


@app.command("evaluate")
def evaluate(
    model: Model,
    examples: Annotated[
        Path | None, typer.Option(help="Folder written by `bertpipe examples`.", show_default=False)
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text file, or a source such as wikitext-2, instead of examples: masked tokens in "
            "bits per byte, which compares models with different tokenizers.",
            show_default=False,
        ),
    ] = None,
    minimal_pairs: Annotated[
        Path | None,
        typer.Option(
            help="Pairs of a right and a wrong sentence: a file or folder in the format of BLiMP "
            "or MultiBLiMP (jsonl, csv, tsv, parquet).",
            show_default=False,
        ),
    ] = None,
    cloze: Annotated[
        Path | None,
        typer.Option(
            help="Texts with one [MASK] and the expected word: a file with text and expect (jsonl, "
            "csv, tsv, parquet), or a recipe with probes.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Literal["validation", "train"], typer.Option(help="Examples to evaluate on.")
    ] = "validation",
    pseudo_perplexity: Annotated[
        bool,
        typer.Option(
            "--pseudo-perplexity",
            help="With --text: mask each token in turn, instead of 15% of them at once.",
        ),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --pseudo-perplexity: score at most this many tokens, drawn at random.",
            show_default="10000",
        ),
    ] = None,
    pll: Annotated[
        Literal["original", "word-l2r"] | None,
        typer.Option(
            help="With --pseudo-perplexity or --minimal-pairs: what is masked to score a token, it "
            "alone (Salazar et al. 2020), or the later tokens of its word too (Kauf and Ivanova "
            "2023).",
            show_default="original",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on masked examples, plain text, minimal pairs or cloze probes."""
    source = _only_source(examples=examples, text=text, minimal_pairs=minimal_pairs, cloze=cloze)
    if pseudo_perplexity and text is None:
        raise UsageError("--pseudo-perplexity requires --text.")
    if max_tokens is not None and not pseudo_perplexity:
        raise UsageError("--max-tokens requires --pseudo-perplexity.")
    if pll is not None and not (pseudo_perplexity or minimal_pairs):
        raise UsageError("--pll requires --pseudo-perplexity or --minimal-pairs.")
    title = f"{model} on {source}"
    scoring: dict[str, Any] = {} if pll is None else {"pll": pll}
    sampling: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    found: Any
    if examples is not None:
        found = api.evaluate(model, examples, split, quiet=as_json)
        _print_evaluation(found, f"{title}, {split}", found.describe(split), as_json)
        return
    if text is not None and pseudo_perplexity:
        found = api.evaluate_pseudo_perplexity(model, text, **scoring, **sampling, quiet=as_json)
    elif text is not None:
        found = api.evaluate_text(model, text, quiet=as_json)
    elif minimal_pairs is not None:
        found = api.evaluate_minimal_pairs(model, minimal_pairs, **scoring, quiet=as_json)
        found.print_groups(quiet=as_json)
    elif cloze is not None:
        found = api.evaluate_cloze(model, cloze)
        found.print_answers(quiet=as_json)
    _print_evaluation(found, title, found.describe(), as_json)


def _only_source(**sources: str | Path | None) -> str | Path:
    """What to evaluate on, of all that can be given."""
    given = [source for source in sources.values() if source is not None]
    if len(given) != 1:
        raise UsageError(f"evaluate: give one of {flags(sources)}, and no more.")
    return given[0]


def _print_evaluation(
    evaluation: Any, title: str, lines: list[tuple[str, str]], as_json: bool
) -> None:
    if as_json:
        print(json.dumps(asdict(evaluation), ensure_ascii=False))  # noqa: T201
        return
    from bert_pipeline.progress import print_pairs

    print_pairs(title, lines)


@app.command("fill-mask")
def fill_mask(
    model: Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="Texts with [MASK] in place of words.", show_default=False
        ),
    ] = None,
    input_path: Input = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Words among which to choose, separated by commas; repeat for more.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Predictions per mask.")] = 5,
    encoding: Encoding = None,
    as_json: Json = False,
) -> None:
    """Predict the masked words in texts, or in the lines of a file or of standard input."""
    if texts and input_path is not None:
        raise UsageError("fill-mask: give either TEXT or --input.")
    words = [word for value in targets or [] for word in value.split(",") if word.strip()]
    if targets and not words:
        raise UsageError("--targets: give at least one word.")
    if texts and as_json:
        found = api.fill_mask(model, texts, top_k=top_k, targets=words)
        print(json.dumps(found, ensure_ascii=False))  # noqa: T201
        return
    from bert_pipeline.predict.fill_lines import fill_lines

    if texts:
        fill_lines(model, texts, "Text", top_k, words, as_json=False)
        return
    from bert_pipeline.predict.read_inputs import InputTexts

    source = InputTexts(_choose_input(input_path), encoding=encoding)
    name = f"{source.name}, line"
    fill_lines(model, source.texts(), name, top_k, words, as_json=as_json)


def _choose_input(path: Path | None) -> Path:
    """The file that `--input` names, or standard input if something is piped into it."""
    if path is None and sys.stdin.isatty():
        raise UsageError("Give texts: --input FILE, or - for standard input.")
    return path or Path("-")


@app.command("embed")
def embed(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder of a model, of a run, or of sentence-transformers.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="File of vectors: .parquet, .npy or .npz.", show_default=False)
    ],
    input_path: Input = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            help="Field that holds the text, in .jsonl, .csv, .tsv and .parquet.",
            show_default="text or content",
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "last4-concat"] | None,
        typer.Option(
            help="Vector of a text: the mean of the last hidden states, that of the first token, "
            "or the mean of the concatenated last four layers.",
            show_default="mean, or that of a sentence-transformers folder",
        ),
    ] = None,
    level: Annotated[
        Literal["text", "token"], typer.Option(help="One vector per text, or per token.")
    ] = "text",
    normalized: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Vectors of length 1.",
            show_default="as a sentence-transformers folder says",
        ),
    ] = None,
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="On a broken row: stop and name it, or skip and count it."),
    ] = "fail",
    encoding: Encoding = None,
    quiet: Quiet = False,
) -> None:
    """Write the vectors of texts: the lines of a file or of standard input, or the rows of a table.

    The texts keep their order. Texts longer than the model takes are truncated and counted.
    """
    from bert_pipeline.predict.embed_file import embed_file
    from bert_pipeline.predict.read_inputs import InputTexts
    from bert_pipeline.progress import print_line

    path = _choose_input(input_path)
    source = InputTexts(path, text_field=text_field, encoding=encoding, on_error=on_error)
    by_token = level == "token"
    result = embed_file(
        model, source, out, pooling, by_token=by_token, normalized=normalized, quiet=quiet
    )
    print_line(result.describe(), quiet=quiet)


@app.command("predict")
def predict(
    model: Model,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="CSV, TSV, JSON lines, Parquet, text, CoNLL or SQuAD file, `-` for lines of "
            "standard input, or hub:REPO[:CONFIG].",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines file with an object per row; .json for answers by id.",
            show_default=False,
        ),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="Column of the text; twice for pairs.", show_default=False),
    ] = None,
    column_names: Annotated[
        str | None,
        typer.Option(
            help="Names of the columns, separated by commas, for files without a line of names.",
            show_default=False,
        ),
    ] = None,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Longer texts are cut.")] = 512,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict labels, tags, answers or choices for the rows of a file; next sentences too."""
    from bert_pipeline.progress import count_of, err, print_line

    names = tuple(name.strip() for name in (column_names or "").split(",") if name.strip())
    counts = api.predict(
        model,
        source,
        out,
        text_field=text_field or (),
        column_names=names,
        max_seq_length=max_seq_length,
        as_json=as_json,
        quiet=quiet,
    )
    if out is not None:
        print_line(f"{count_of(counts.rows, 'row')} → {out}", quiet=quiet)
    if counts.bad_rows:
        lines = [f"{count_of(counts.bad_rows, 'row')} could not be read:", *counts.problems]
        err.print("\n  ".join(lines), markup=False)


@app.command("export")
def export(
    model: Model,
    to: Annotated[
        Literal["onnx", "safetensors-fp16"],
        typer.Option(help="Format: `onnx` needs bertpipe[onnx].", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Output folder.", show_default=False)],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model in the format of another runtime, checked against the original."""
    from bert_pipeline.progress import print_line

    exported = api.export(model, to, out, overwrite=overwrite)
    print_line(exported.describe(), quiet=quiet)
