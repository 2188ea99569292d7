"""The Python API: the stages and what a model can do, as functions.

A stage takes a config object, or the options of its command as keyword arguments:

```python
from bert_pipeline import build_corpus

build_corpus(source="text:texts/*.txt", out="my/corpus")
```

Importing this module loads no heavy libraries; calling a function does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bert_pipeline.config import StageConfig, build_config
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.stages import STAGES
from bert_pipeline.storage.manifest import Manifest, read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig

if TYPE_CHECKING:
    from bert_pipeline.predict.export import Exported
    from bert_pipeline.predict.predict import PredictCounts
    from bert_pipeline.pretraining.evaluation import Evaluation
    from bert_pipeline.pretraining.text_evaluation import TextEvaluation
    from bert_pipeline.pretraining.zero_shot.cloze import Cloze
    from bert_pipeline.pretraining.zero_shot.minimal_pairs import MinimalPairs
    from bert_pipeline.pretraining.zero_shot.pseudo_likelihood import Pll
    from bert_pipeline.pretraining.zero_shot.pseudo_perplexity import PseudoPerplexity
    from bert_pipeline.ragged import Array
    from bert_pipeline.verification import Verified

C = TypeVar("C", bound=StageConfig)


def build_corpus(config: CorpusConfig | None = None, **options: Any) -> Manifest:
    """Read sources and write clean documents in parquet (`bertpipe corpus`).

    Returns the manifest of the corpus. Raises `BertpipeError` if a source is missing, broken or
    has no text, and `UsageError` for wrong options.
    """
    return _run("corpus", CorpusConfig, config, options)


def train_tokenizer(config: TokenizeConfig | None = None, **options: Any) -> Manifest:
    """Train a tokenizer on a corpus, or take an existing one (`bertpipe tokenize`).

    Returns the manifest of the tokenizer's folder, which `AutoTokenizer.from_pretrained` loads.
    """
    return _run("tokenize", TokenizeConfig, config, options)


def build_examples(config: ExamplesConfig | None = None, **options: Any) -> Manifest:
    """Make masked training examples from a corpus and a tokenizer (`bertpipe examples`).

    Returns the manifest of the examples.
    """
    return _run("examples", ExamplesConfig, config, options)


def pretrain(config: PretrainConfig | None = None, **options: Any) -> Manifest:
    """Pretrain BERT on examples, or resume a stopped run (`bertpipe pretrain`).

    Returns the manifest of the run, whose counts have the final metrics; the model is in the
    folder `model` of `out`. Raises `Stopped` after saving if a signal stops the run.
    """
    return _run("pretrain", PretrainConfig, config, options)


def run_recipe(
    recipe: str | Path,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    *,
    through: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Path:
    """Run a recipe, a YAML file or the name of a shipped one (`bertpipe run`).

    `settings` are `STAGE.FIELD=VALUE` strings, `through` is the last stage to run, by default the
    recipe's last. Complete stages are skipped. Returns the folder of the run, by default
    `runs/NAME`.
    """
    from bert_pipeline.recipe import default_out, find_recipe, read_recipe, run_stages

    path = find_recipe(str(recipe))
    folder = Path(out) if out is not None else default_out(path)
    content = read_recipe(path, folder, settings, overwrite=overwrite, quiet=quiet, verbose=verbose)
    run_stages(content, through, quiet=quiet)
    return folder


def evaluate(
    model: str | Path,
    examples: str | Path,
    split: Literal["validation", "train"] = "validation",
    *,
    quiet: bool = True,
) -> "Evaluation":
    """Evaluate a model on masked examples (`bertpipe evaluate`).

    The metrics include the loss of the unigram baseline, for comparison.

    `model` is a model folder, or the folder of the run that made it. Raises `BertpipeError` if the
    examples were not made for the model.
    """
    from bert_pipeline.pretraining.evaluation import evaluate_folder

    return evaluate_folder(Path(model), Path(examples), split, quiet=quiet)


def evaluate_text(model: str | Path, text: str | Path, *, quiet: bool = True) -> "TextEvaluation":
    """Evaluate a model on plain text, in bits per byte (`bertpipe evaluate --text`).

    That compares models with different tokenizers. `text` is a file, or a source as `build_corpus`
    takes it. Raises `BertpipeError` if there is no text in it.
    """
    from bert_pipeline.pretraining.text_evaluation import evaluate_text

    return evaluate_text(Path(model), str(text), quiet=quiet)


def evaluate_pseudo_perplexity(
    model: str | Path,
    text: str | Path,
    *,
    max_tokens: int = 10_000,
    pll: "Pll" = "original",
    quiet: bool = True,
) -> "PseudoPerplexity":
    """Score the tokens of a text, masking each in turn (`evaluate --text --pseudo-perplexity`).

    `text` is as for `evaluate_text`. At most `max_tokens` are scored, a fixed random choice.
    """
    from bert_pipeline.pretraining.zero_shot.pseudo_perplexity import evaluate_pseudo_perplexity

    return evaluate_pseudo_perplexity(Path(model), str(text), max_tokens, pll, quiet=quiet)


def evaluate_minimal_pairs(
    model: str | Path, pairs: str | Path, *, pll: "Pll" = "original", quiet: bool = True
) -> "MinimalPairs":
    """Evaluate a model on minimal pairs (`bertpipe evaluate --minimal-pairs`).

    `pairs` is a file or a folder of files, with the columns of BLiMP or MultiBLiMP. Raises
    `BertpipeError` naming the first row that is no pair.
    """
    from bert_pipeline.pretraining.zero_shot.minimal_pairs import evaluate_minimal_pairs

    return evaluate_minimal_pairs(Path(model), Path(pairs), pll, quiet=quiet)


def evaluate_cloze(model: str | Path, probes: str | Path) -> "Cloze":
    """Evaluate a model on cloze probes (`bertpipe evaluate --cloze`).

    `probes` is a file of rows with `text`, which has one `[MASK]`, and `expect`, or a recipe with
    `probes:`. Raises `BertpipeError` naming the first row that is no probe.
    """
    from bert_pipeline.pretraining.zero_shot.cloze import evaluate_cloze
    from bert_pipeline.pretraining.zero_shot.probes import read_probes

    return evaluate_cloze(Path(model), read_probes(Path(probes)))


def fill_mask(
    model: str | Path, texts: str | Sequence[str], *, top_k: int = 5, targets: Sequence[str] = ()
) -> Any:
    """Predict the masks in texts, as `transformers.pipeline("fill-mask")` returns them.

    `[MASK]` stands for the model's mask token. With `targets` only these words are predicted. A
    text with one mask gives a list of `score`, `token`, `token_str`, `sequence`; one with several
    masks a list of such lists; several texts a list of either. To call it often, use
    `predict.fill_mask.MaskFiller`, which loads the model once.
    """
    from bert_pipeline.predict.fill_mask import MaskFiller

    return MaskFiller(model).fill([texts] if isinstance(texts, str) else texts, top_k, targets)


def embed(
    model: str | Path,
    texts: str | Sequence[str],
    *,
    pooling: Literal["mean", "cls", "last4-concat"] | None = None,
    normalize: bool | None = None,
) -> "Array":
    """The vectors of texts, a float32 array `[texts, dimension]` (`bertpipe embed`).

    `model` is a model folder, the folder of a run, or one of sentence-transformers, whose pooling
    and normalization are the defaults; else the default is the mean. To call it often, or for the
    vectors of tokens, use `predict.embed.Embedder`.
    """
    import numpy as np

    from bert_pipeline.predict.embed import Embedder

    embedder = Embedder(model, pooling, normalized=normalize)
    parts = embedder.embed([texts] if isinstance(texts, str) else texts)
    empty = np.zeros((0, embedder.dimension), dtype=np.float32)
    return np.concatenate([empty, *(part.vectors for part in parts)])


def finetune(config: FinetuneConfig | None = None, **options: Any) -> Manifest:
    """Fine-tune a model on labelled rows, or resume a stopped run (`bertpipe finetune`).

    Returns the manifest of the run, whose counts have the metrics of the best epoch; the model is
    in the folder `model` of `out`.
    """
    return _run("finetune", FinetuneConfig, config, options)


def predict(
    model: str | Path,
    source: str,
    out: str | Path | None = None,
    *,
    text_field: Sequence[str] = (),
    column_names: Sequence[str] = (),
    max_seq_length: int = 512,
    as_json: bool = True,
    quiet: bool = True,
) -> "PredictCounts":
    """Predict the rows of a file (`bertpipe predict`), into a JSON lines file or printed.

    Returns how many rows there were. To predict rows in Python, use `predict.predict.Predictor`,
    which loads the model once.
    """
    from bert_pipeline.predict.predict import PredictOptions, predict_file

    options = PredictOptions(
        text_field=tuple(text_field),
        column_names=tuple(column_names),
        max_seq_length=max_seq_length,
    )
    target = None if out is None else Path(out)
    return predict_file(model, source, target, options, as_json=as_json, quiet=quiet)


def export(
    model: str | Path,
    to: Literal["onnx", "safetensors-fp16"],
    out: str | Path,
    *,
    overwrite: bool = False,
) -> "Exported":
    """Write a model in another format to the folder `out` (`bertpipe export`).

    Returns where it is, and how far its outputs are from those of the model. Raises
    `BertpipeError` if that is too far, and nothing is written.
    """
    from bert_pipeline.predict.export import export_model

    return export_model(Path(model), to, Path(out), overwrite=overwrite)


def verify(folder: str | Path, *, quiet: bool = True) -> "list[Verified]":
    """Verify the folder of a stage, or all of them in the folder of a run (`bertpipe verify`).

    Reads every file and checkpoint, and compares the inputs. Returns what was found in each folder,
    with its `problems`. Raises `BertpipeError` if there is no folder to verify.
    """
    from bert_pipeline.verification import verify_folders

    return verify_folders(Path(folder), quiet=quiet)


def _run(name: str, config_class: type[C], config: C | None, options: dict[str, Any]) -> Manifest:
    if config is None:
        config = build_config(config_class, options)
    elif options:
        config = build_config(config_class, config.model_dump(exclude_unset=True) | options)
    STAGES[name].run(config)
    return read_manifest(config.out, name)
