"""Recipes: one YAML file with a section a stage, run in order into one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bert_pipeline.config import StageConfig, build_config, read_yaml, refuse_unknown
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.examples.config import ExamplesConfig
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.progress import print_line
from bert_pipeline.storage.manifest import Manifest
from bert_pipeline.tokenizer.config import TokenizeConfig

CONFIGS: dict[str, type[StageConfig]] = {
    "corpus": CorpusConfig,
    "tokenize": TokenizeConfig,
    "examples": ExamplesConfig,
    "long_examples": ExamplesConfig,
    "pretrain": PretrainConfig,
}
FOLDERS = {
    "corpus": "corpus",
    "tokenize": "tokenizer",
    "examples": "examples",
    "long_examples": "examples-long",
    "pretrain": "pretrain",
}
# Which folders of the run each stage reads, by the option that takes them.
READS = {
    "corpus": {},
    "tokenize": {"corpus": "corpus"},
    "examples": {"corpus": "corpus", "tokenizer": "tokenize"},
    "long_examples": {"corpus": "corpus", "tokenizer": "tokenize"},
    "pretrain": {"examples": "examples", "long_examples": "long_examples", "tokenizer": "tokenize"},
}
LIKE = {"long_examples": "examples"}
"""Stages that a recipe may do without, and those whose options they take where they give no own ones."""
PROBES = "probes"
SECTIONS = frozenset({*CONFIGS, PROBES})
AMONG = 5


class Probe(BaseModel):
    """A text with one mask, and the word that a good model puts among its first five."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    expect: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """The configs of all stages of a run, checked before the first one starts."""

    stages: dict[str, StageConfig]
    probes: tuple[Probe, ...]


def find_recipe(name: str) -> Path:
    """A YAML path, or the name of a recipe that is shipped with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    package = Path(__file__).parent
    # In a wheel the recipes lie inside the package, in a checkout beside it.
    folder = next(
        (f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None
    )
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}
    if name not in shipped:
        raise BertpipeError(
            f"{name}: neither a YAML file nor a shipped recipe ({', '.join(shipped) or 'none found'})."
        )
    return shipped[name]


def read_recipe(
    path: Path, out: Path, settings: Sequence[str], overwrite: bool, quiet: bool
) -> Recipe:
    """Read and check a recipe with its `--set` values; `UsageError` names the first thing that is wrong."""
    content = read_yaml(path)
    refuse_unknown(content, SECTIONS, f"{path}: section")
    for setting in settings:
        _apply(content, setting)
    stages = {}
    asked = [stage for stage in CONFIGS if stage not in LIKE or stage in content]
    for stage in asked:
        reads = {
            option: out / FOLDERS[read] for option, read in READS[stage].items() if read in asked
        }
        wired = {"out": out / FOLDERS[stage]} | reads
        section = _mapping(content.get(stage), path, stage)
        for option in wired.keys() & section.keys():
            raise UsageError(
                f"{path}, {stage}: leave out `{option}`; the run's own folders are used."
            )
        alike = _mapping(content.get(LIKE[stage]), path, LIKE[stage]) if stage in LIKE else {}
        values = {"overwrite": overwrite, "quiet": quiet} | alike | section | wired
        stages[stage] = build_config(CONFIGS[stage], values, f"{path}, {stage}: ")
    try:
        probes = tuple(Probe(**probe) for probe in content.get(PROBES) or [])
    except (ValidationError, TypeError):
        raise UsageError(
            f"{path}, {PROBES}: a list of {{text: ..., expect: ...}} was expected."
        ) from None
    return Recipe(stages, probes)


def run_recipe(recipe: Recipe, through: str, quiet: bool) -> None:
    """Run the stages in order up to `through`; those that are complete are passed over."""
    if through not in recipe.stages:
        raise UsageError(f"--through {through}: the recipe has no such section.")
    for stage, config in recipe.stages.items():
        _run_stage(stage, config)
        if stage == through:
            break
    if through == "pretrain" and recipe.probes:
        _try_probes(recipe.stages["pretrain"].out, recipe.probes, quiet)


def _run_stage(stage: str, config: StageConfig) -> Manifest | None:
    if isinstance(config, CorpusConfig):
        from bert_pipeline.corpus.build import build_corpus

        return build_corpus(config)
    if isinstance(config, TokenizeConfig):
        from bert_pipeline.tokenizer.train import train_tokenizer

        return train_tokenizer(config)
    if isinstance(config, ExamplesConfig):
        from bert_pipeline.examples.build import build_examples

        return build_examples(config)
    assert isinstance(config, PretrainConfig), stage
    from bert_pipeline.training.launch import run_pretrain

    run_pretrain(config)
    return None


def _try_probes(model: Path, probes: Sequence[Probe], quiet: bool) -> None:
    from bert_pipeline.predict.fill_mask import MASK, MaskFiller

    filler = MaskFiller(model)
    lines, found = ["Probes, with the expected word in brackets and the first guesses below"], 0
    for probe, masks in zip(
        probes, filler.fill_each([probe.text for probe in probes], AMONG), strict=True
    ):
        words = [candidate["token_str"].strip() for candidate in masks[0]]
        hit = probe.expect.casefold() in (word.casefold() for word in words)
        found += hit
        lines.append(
            f"  {'yes' if hit else 'no':<3}  {probe.text.replace(MASK, f'[{probe.expect}]')}"
        )
        lines.append(f"       {', '.join(words)}")
    lines.append(
        f"probes: the expected word is among the first {AMONG} in {found} of {len(probes)}"
    )
    print_line("\n".join(lines), quiet=quiet)


def _mapping(section: object, path: Path, stage: str) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}, {stage}: `option: value` lines were expected.")
    return section


def _apply(content: dict[str, Any], setting: str) -> None:
    """Apply `stage.field=value`; deeper dots reach into a mapping, and the value is read as YAML."""
    import yaml

    name, equals, value = setting.partition("=")
    stage, *fields = name.strip().replace("-", "_").split(".")
    if not equals or not fields or stage not in CONFIGS:
        raise UsageError(
            f"--set {setting}: write STAGE.FIELD=VALUE, with STAGE one of {', '.join(CONFIGS)}."
        )
    place = content.setdefault(stage, {})
    for key in (stage, *fields[:-1])[1:]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise UsageError(f"--set {setting}: {'.'.join(name.split('.')[:-1])} is no mapping.")
    try:
        place[fields[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {setting}: the value is not valid YAML.") from None


def default_out(recipe: Path) -> Path:
    """Where a run goes unless told otherwise: `runs/NAME`."""
    return Path("runs") / recipe.stem
