"""Stage configurations: each option is declared once, as a field of a stage's model.

The docstring under a field is its help text. `options.py` makes command-line options from the fields, `read_section`
fills them from YAML, and the manifest records them.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bert_pipeline.errors import BertpipeError, UsageError

C = TypeVar("C", bound="StageConfig")

RAY_OPTIONS = ("memory_gb",)
SLURM_SETTINGS = ("tasks_per_job", "max_array_size")
"""Engine options that datatrove reads; all others for Slurm are sbatch's."""
OWN_SBATCH_OPTIONS = ("array", "job_name", "output", "error", "dependency", "export", "wait")


def flag(name: str) -> str:
    """The command-line option of a field: `--max-steps` for `max_steps`."""
    return "--" + name.replace("_", "-")


def flags(names: Iterable[str]) -> str:
    """The command-line options of several fields, separated by commas."""
    return ", ".join(map(flag, names))


def _as_tuple(given: object) -> object:
    return (given,) if isinstance(given, str) else given


OneOrMany = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""The type of an option that can be repeated: YAML may give one value or a list."""


class Choice:
    """The names in a registry, as the allowed values of a string option: `Annotated[str, Choice(REGISTRY)]`.

    Validation, the choices in `--help` and the generated documentation all read the registry.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"must be one of {', '.join(self.names)}")
        return name


def available_cores() -> int:
    """Cores that this process may use (a container or `taskset` may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StageConfig(BaseModel):
    """What every stage is told. Fields named in `execution` say how to work, never what comes out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    execution: ClassVar[frozenset[str]] = frozenset({"out", "overwrite", "quiet", "verbose"})

    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace what the folder holds if it was made otherwise; the old content stays until the new is complete."""
    quiet: bool = False
    """Print nothing but errors."""
    verbose: bool = False
    """Print all tables of the summary; they are in the manifest in any case."""

    @field_validator("out")
    @classmethod
    def _name_folder(cls, out: Path) -> Path:
        """`.` by its name, which the folders beside it are named after while it is made; `~` as the home folder."""
        out = Path(os.path.expanduser(out))  # noqa: PTH111 (Path's fails where there is no such user)
        named = out if out.name not in ("", "..") else Path(os.path.abspath(out))  # noqa: PTH100 (links stay)
        if not named.name:
            raise ValueError("a folder with a name was expected")
        return named

    def content(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(self.execution))


class ShardedConfig(StageConfig):
    """A stage whose work is a pure function of each shard."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "workers",
        "engine",
        "engine_option",
    }

    workers: int = Field(default_factory=available_cores, ge=1)
    """Processes to work with, or tasks at a time on a cluster; the result is the same for any number."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Where the shards are worked on: `local` is processes on this machine, `ray` a Ray cluster, `slurm` array jobs;
    the result is the same."""
    engine_option: OneOrMany = ()
    """KEY=VALUE, may be given several times. For slurm any option of sbatch, such as partition=cpu, time=04:00:00 or
    mem-per-cpu=4G; also tasks_per_job and max_array_size. For ray memory_gb, to reserve for each task."""

    @model_validator(mode="after")
    def _check_engine_options(self) -> "ShardedConfig":
        for option in self.engine_option:
            if complaint := _find_fault(self.engine, option):
                raise ValueError(f"--engine-option {option}: {complaint}")
        return self

    def read_engine_options(self) -> dict[str, str]:
        """The engine's options by name."""
        given = (option.split("=", 1) for option in self.engine_option)
        return {key.replace("-", "_"): value for key, value in given}


def _find_fault(engine: str, option: str) -> str | None:
    name, equals, value = option.partition("=")
    key = name.replace("-", "_")
    if not equals or not key.isidentifier():
        return "write KEY=VALUE, such as partition=cpu."
    if engine == "local":
        return "there are none for --engine local."
    if engine == "ray" and key not in RAY_OPTIONS:
        return f"unknown to --engine ray. Known: {', '.join(RAY_OPTIONS)}."
    if engine == "slurm" and key in OWN_SBATCH_OPTIONS:
        return "bertpipe sets this option of sbatch itself."
    if key in RAY_OPTIONS + SLURM_SETTINGS and not (value.isdecimal() and int(value) > 0):
        return "a whole number from 1 on was expected."
    return None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name the file and the line."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BertpipeError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(
            f"{path}: a mapping of stage sections was expected, such as `tokenize:` with its options below."
        )
    return content


def read_section(path: Path, stage: str, sections: frozenset[str]) -> dict[str, Any]:
    """The options that a recipe file gives for one stage (none when it has no such section)."""
    content = read_yaml(path)
    refuse_unknown(content, sections, f"{path}: section")
    section = content.get(stage) or {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}: `{stage}:` must hold `option: value` lines.")
    return section


def refuse_unknown(given: dict[str, Any], known: frozenset[str], where: str) -> None:
    """Raise `UsageError` naming the first key that nobody would read."""
    for key in given:
        if key not in known:
            raise UsageError(f"{where} `{key}` is unknown. Known: {', '.join(sorted(known))}.")


def build_config(model: type[C], values: dict[str, Any], where: str = "") -> C:
    """Validate `values`; a `UsageError` names each wrong option, its value and what was expected."""
    refuse_unknown(values, frozenset(model.model_fields), f"{where}option" if where else "option")
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError(
            "\n".join(where + _explain(e["loc"], e["msg"], e.get("input")) for e in error.errors())
        ) from None


def _explain(location: tuple[int | str, ...], message: str, given: object) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    option = flag(str(location[0]))
    if message == "Field required":
        return f"{option} is missing."
    return f"{option}: {message.removeprefix('Value error, ')} (given: {given!r})"
