"""Recipes: one YAML file with a section per stage, run in order into one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.config import (
    StageConfig,
    build_config,
    parse_yaml,
    read_yaml,
    reject_unknown,
    suggest,
)
from bert_pipeline.errors import UsageError
from bert_pipeline.pretraining.zero_shot.probes import Probe, parse_probe
from bert_pipeline.pretraining.zero_shot.records import PROBES, list_probes
from bert_pipeline.progress import print_line
from bert_pipeline.stages import STAGES

SECTIONS = frozenset({*STAGES, PROBES})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The configs of all stages of a run, validated before the first one starts."""

    stages: dict[str, StageConfig]
    probes: tuple[Probe, ...]


def find_recipe(name: str) -> Path:
    """A YAML path, or the name of a recipe that is shipped with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    package = Path(__file__).parent
    # In a wheel the recipes are inside the package, in a checkout beside it.
    folders = (package / "configs", package.parent / "configs")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}
    if name not in shipped:
        known = suggest(name, shipped) if shipped else "None is installed."
        raise UsageError(f"{name}: neither a YAML file nor a shipped recipe. {known}")
    return shipped[name]


def read_recipe(
    path: Path,
    out: Path,
    settings: Sequence[str] = (),
    *,
    overwrite: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Recipe:
    """Read and validate a recipe with its `--set` values; `out` is the folder of the run.

    Raises `UsageError` naming the first error.
    """
    content = read_yaml(path)
    reject_unknown(content, SECTIONS, f"{path}: section")
    for setting in settings:
        _apply(content, setting)
    names = [name for name, stage in STAGES.items() if not stage.is_optional or name in content]
    shared = {"overwrite": overwrite, "quiet": quiet, "verbose": verbose}
    stages = {}
    for name in names:
        stage = STAGES[name]
        folders = {"out": str(out / stage.folder)}
        for option, read in stage.inputs.items():
            if read in names:
                folders[option] = str(out / STAGES[read].folder)
        section = _mapping(content.get(name), path, name)
        for option in folders.keys() & section.keys():
            raise UsageError(f"{path}, {name}: remove `{option}`; the run's folders are used.")
        inherited = {}
        if stage.variant_of:
            inherited = _mapping(content.get(stage.variant_of), path, stage.variant_of)
        values = shared | inherited | section | folders
        stages[name] = build_config(stage.config, values, f"{path}, {name}: ")
    probes = tuple(map(parse_probe, list_probes(content, path)))
    return Recipe(stages, probes)


def run_stages(recipe: Recipe, through: str | None = None, *, quiet: bool = False) -> None:
    """Run the stages in order up to `through`, by default all; complete ones are skipped."""
    if through is not None and through not in recipe.stages:
        raise UsageError(f"--through {through}: the recipe has no such section.")
    for name, config in recipe.stages.items():
        STAGES[name].run(config)
        if name == "pretrain" and recipe.probes:
            _run_probes(config.out, recipe.probes, quiet)
        if name == through:
            break


def _run_probes(model: Path, probes: Sequence[Probe], quiet: bool) -> None:
    """Print what the model predicts for each probe."""
    from bert_pipeline.pretraining.zero_shot.cloze import TOP_K, evaluate_cloze

    found = evaluate_cloze(model, probes)
    count = sum(answer.is_in_top(TOP_K) for answer in found.answers)
    lines = [
        "Probes: the expected word in brackets, the predictions below",
        *found.describe_answers(),
        f"probes: the expected word is in the top {TOP_K} in {count} of {found.probes}",
    ]
    print_line("\n".join(lines), quiet=quiet)


def _mapping(section: object, path: Path, stage: str) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}, {stage}: `option: value` lines were expected.")
    return section


def _apply(content: dict[str, Any], setting: str) -> None:
    """Apply `stage.field=value`; further dots reach into a mapping, the value is read as YAML."""
    name, equals, value = setting.partition("=")
    stage, *fields = name.strip().replace("-", "_").split(".")
    if not (equals and fields and all(fields)):
        raise UsageError(f"--set {setting}: must be STAGE.FIELD=VALUE.")
    reject_unknown([stage], STAGES, f"--set {setting}: stage")
    reject_unknown(fields[:1], STAGES[stage].config.model_fields, f"--set {setting}: option")
    parent = content.setdefault(stage, {})
    for key in (stage, *fields[:-1])[1:]:
        parent = parent.setdefault(key, {}) if isinstance(parent, dict) else None
    if not isinstance(parent, dict):
        path = ".".join(name.split(".")[:-1])
        raise UsageError(f"--set {setting}: {path} is not a mapping.")
    parent[fields[-1]] = parse_yaml(value, f"--set {name}")


def default_out(recipe: Path) -> Path:
    """The default folder of a run: `runs/NAME`."""
    return Path("runs") / recipe.stem
