"""Stage configurations: each option is declared once, as a field of a stage's model.

The docstring under a field is its help text. `options.py` makes command-line options from the fields, `read_section`
fills them from YAML, and the manifest records them.
"""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bert_pipeline.errors import BertpipeError, UsageError

C = TypeVar("C", bound="StageConfig")


def available_cores() -> int:
    """Cores that this process may use (a container or `taskset` may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StageConfig(BaseModel):
    """What every stage is told. Fields named in `execution` say how to work, never what comes out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    execution: ClassVar[frozenset[str]] = frozenset({"out", "overwrite", "quiet"})

    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace what the folder holds if it was made otherwise; the old content stays until the new is complete."""
    quiet: bool = False
    """Print nothing but errors."""

    def content(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(self.execution))


class ShardedConfig(StageConfig):
    """A stage whose work is a pure function of each shard."""

    execution: ClassVar[frozenset[str]] = StageConfig.execution | {"workers", "engine"}

    workers: int = Field(default_factory=available_cores, ge=1)
    """Processes to work with; the result is the same for any number."""
    engine: Literal["local"] = "local"
    """Where the shards are worked on: `local` is processes on this machine."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name the file and the line."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BertpipeError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file.") from None
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
    option = "--" + str(location[0]).replace("_", "-")
    if message == "Field required":
        return f"{option} is missing."
    return f"{option}: {message.removeprefix('Value error, ')} (given: {given!r})"
