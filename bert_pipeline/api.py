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
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.stages import STAGES
from bert_pipeline.storage.manifest import Manifest, read_manifest
from bert_pipeline.tokenizer.config import TokenizeConfig

if TYPE_CHECKING:
    from bert_pipeline.pretraining.evaluation import Evaluation
    from bert_pipeline.pretraining.text_evaluation import TextEvaluation
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
    through: str = "pretrain",
    overwrite: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Path:
    """Run a recipe, a YAML file or the name of a shipped one (`bertpipe run`).

    `settings` are `STAGE.FIELD=VALUE` strings, `through` is the last stage to run. Complete stages
    are skipped. Returns the folder of the run, by default `runs/NAME`.
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
