"""Stage configurations: each option is declared once, as a field of a stage's model.

The docstring under a field is its help text. `options.py` makes command-line options from the
fields, `read_section` reads them from YAML, and the manifest records them.
"""

import os
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from reprlib import Repr
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

MAX_YAML_VALUES = 10_000
"""A recipe has some dozens; a few lines with aliases of aliases can stand for billions."""
MAX_SHOWN_CHARS = 200
"""Characters of a value in an error message."""
RAY_OPTIONS = ("memory_gb",)
SLURM_SETTINGS = ("tasks_per_job", "max_array_size")
"""Engine options for datatrove's Slurm executor; all others are passed to sbatch."""
RESERVED_SBATCH_OPTIONS = ("array", "job_name", "output", "error", "dependency", "export", "wait")


def flag(name: str) -> str:
    """The command-line option of a field: `--max-steps` for `max_steps`."""
    return "--" + name.replace("_", "-")


def flags(names: Iterable[str]) -> str:
    """The command-line options of several fields, separated by commas."""
    return ", ".join(map(flag, names))


def _as_tuple(given: object) -> object:
    return (given,) if isinstance(given, str) else given


OneOrMany = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""The type of an option that can be repeated; YAML can give one value or a list."""


class Choice:
    """Restricts a string option to the names in a registry: `Annotated[str, Choice(REGISTRY)]`.

    Validation, the choices in `--help` and the generated documentation all use the registry.
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


class Argument:
    """Marks an option that the command line takes as an argument, without its name."""


def available_cores() -> int:
    """Cores that this process may use: a container or `taskset` may allow only some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class StageConfig(BaseModel):
    """Options of every stage. Those named in `execution` do not affect the result."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    execution: ClassVar[frozenset[str]] = frozenset({"out", "overwrite", "quiet", "verbose"})

    out: Path
    """Output folder."""
    overwrite: bool = False
    """Rebuild the folder if it was made with other settings or inputs; the old content is kept
    until the new one is complete."""
    quiet: bool = False
    """Print errors only."""
    verbose: bool = False
    """Print all figures; they are always recorded in the manifest."""

    @field_validator("out")
    @classmethod
    def _name_folder(cls, out: Path) -> Path:
        """Expand `~`, and `.` to its real name: temporary folders are named after it."""
        # Path.expanduser raises an error for an unknown user, and Path.resolve follows links.
        out = Path(os.path.expanduser(out))  # noqa: PTH111
        if out.name in ("", ".."):
            out = Path(os.path.abspath(out))  # noqa: PTH100
        if not out.name:
            raise ValueError("must be a folder with a name")
        return out

    def content(self) -> dict[str, Any]:
        """The settings that the result depends on, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.execution))


class ShardedConfig(StageConfig):
    """Options of a stage that processes each shard independently."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {
        "workers",
        "engine",
        "engine_option",
    }

    workers: int = Field(default_factory=available_cores, ge=1)
    """Worker processes, or concurrent tasks on a cluster; does not change the result."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Where shards are processed: `local` processes, a `ray` cluster or `slurm` array jobs; does
    not change the result."""
    engine_option: OneOrMany = ()
    """KEY=VALUE; can be repeated. With slurm: any option of sbatch, such as partition=cpu,
    time=04:00:00 or mem-per-cpu=4G, and tasks_per_job and max_array_size. With ray: memory_gb,
    the memory to reserve for each task."""

    @model_validator(mode="after")
    def _check_engine_options(self) -> "ShardedConfig":
        for option in self.engine_option:
            if problem := _check_engine_option(self.engine, option):
                raise ValueError(f"--engine-option {option}: {problem}")
        return self

    def read_engine_options(self) -> dict[str, str]:
        """The engine options by name."""
        given = (option.split("=", 1) for option in self.engine_option)
        return {key.replace("-", "_"): value for key, value in given}


def _check_engine_option(engine: str, option: str) -> str | None:
    name, equals, value = option.partition("=")
    key = name.replace("-", "_")
    if not equals or not key.isidentifier():
        return "must be KEY=VALUE, such as partition=cpu."
    if engine == "local":
        return "--engine local has no options."
    if engine == "ray" and key not in RAY_OPTIONS:
        return f"unknown option. --engine ray supports {', '.join(RAY_OPTIONS)}."
    if engine == "slurm" and key in RESERVED_SBATCH_OPTIONS:
        return "reserved; bertpipe sets this sbatch option itself."
    if key in RAY_OPTIONS + SLURM_SETTINGS and not (value.isdecimal() and int(value) > 0):
        return "must be an integer >= 1."
    return None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name the file and the line."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise BertpipeError(
            f"{path}: cannot be read ({error.strerror}). Check the path of the YAML file."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not valid YAML: {_explain_yaml(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(
            f"{path}: must be a mapping of stage sections, such as `tokenize:` with its options."
        )
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML document. Raises `UsageError` for what is invalid or very large."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        if (node := loader.get_single_node()) is None:
            return None
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise UsageError(
                f"{where}: has more than {MAX_YAML_VALUES:,} values, with its aliases."
            )
        return loader.construct_document(node)
    except RecursionError:
        raise UsageError(f"{where}: not valid YAML: nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError for a date such as 2024-13-01
        raise UsageError(f"{where}: not valid YAML: {_explain_yaml(error)}") from None


def _count_values(node: Any, known: dict[int, float]) -> float:
    """Values below a node; an alias counts as what it stands for, which can be exponential."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # for a node that has an alias of itself
        below = node.value if isinstance(node.value, list) else []
        nodes = chain.from_iterable(item if isinstance(item, tuple) else (item,) for item in below)
        known[id(node)] = 1 + sum(_count_values(child, known) for child in nodes)
    return known[id(node)]


def _explain_yaml(error: Exception) -> str:
    """The line, the column and the problem; PyYAML's own text quotes lines and names no file."""
    from yaml import MarkedYAMLError

    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
    mark = error.problem_mark
    text = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if error.context and error.context_mark:
        text += f" ({error.context} from line {error.context_mark.line + 1})"
    return text


def read_section(path: Path, stage: str, sections: frozenset[str]) -> dict[str, Any]:
    """The options in a recipe's section for one stage; empty if there is no such section."""
    content = read_yaml(path)
    reject_unknown(content, sections, f"{path}: section")
    section = content.get(stage) or {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}: `{stage}:` must contain `option: value` lines.")
    return section


def reject_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise `UsageError` naming the first unknown key."""
    for key in given:
        if key not in known:
            shown = key[:MAX_SHOWN_CHARS]
            raise UsageError(f"{where} `{shown}` is unknown. {suggest(shown, known)}")


def suggest(name: str, known: Collection[str]) -> str:
    """Which name was probably meant, or all known names."""
    if close := get_close_matches(name, known, n=1):
        return f"Did you mean `{close[0]}`?"
    return f"Known: {', '.join(sorted(known))}."


def build_config(model: type[C], values: dict[str, Any], where: str = "") -> C:
    """Validate `values`; a `UsageError` names each invalid option, its value and the reason."""
    reject_unknown(values, model.model_fields, f"{where}option" if where else "option")
    try:
        return model(**values)
    except ValidationError as error:
        # A list has an error for each item.
        first = {e["loc"][:1]: e for e in reversed(error.errors())}
        raise UsageError(
            "\n".join(
                where + _explain(e["loc"], e["msg"], e.get("input"))
                for e in reversed(first.values())
            )
        ) from None


def _explain(location: tuple[int | str, ...], message: str, given: object) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    option = flag(str(location[0]))
    if message == "Field required":
        return f"{option} is required."
    return f"{option}: {message.removeprefix('Value error, ')} (given: {_show(given)})"


def _show(value: object) -> str:
    """A short representation of a value of any size."""
    short = Repr()
    short.maxstring = short.maxother = MAX_SHOWN_CHARS
    try:
        return short.repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a very large number"
