"""Command-line options made from a stage's config model, so that each option is declared once."""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from bert_pipeline.config import ShardedConfig, StageConfig, build_config, read_section
from bert_pipeline.recipe import SECTIONS

C = TypeVar("C", bound=StageConfig)
SHARED = frozenset(ShardedConfig.model_fields)


def stage_command(app: typer.Typer, name: str, model: type[C]) -> Callable[[Callable[[C], None]], Callable[[C], None]]:
    """Register a function of one config as `bertpipe <name>`.

    A value comes from the command line, else from the `--config` file's `<name>:` section, else it is the default.
    """

    def register(run: Callable[[C], None]) -> Callable[[C], None]:
        def command(config: Path | None = None, **options: Any) -> None:
            values = read_section(config, name, SECTIONS) if config else {}
            values |= {key: value for key, value in options.items() if value not in (None, [])}
            run(build_config(model, values))

        help_text = f"Recipe file whose `{name}:` section gives options; those on the command line win."
        config_parameter = _parameter("config", Path | None, typer.Option(help=help_text, show_default=False))
        # Fields that every stage shares come last: a stage's own options are what people look for.
        fields = sorted(model.model_fields.items(), key=lambda item: item[0] in SHARED)
        parameters = [*(_from_field(key, field) for key, field in fields), config_parameter]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, help=inspect.getdoc(run))(command)
        return run

    return register


def _from_field(name: str, field: FieldInfo) -> inspect.Parameter:
    # None means "not given on the line", so that the YAML file can still speak; the help shows the true default.
    annotation = _on_the_line(field.annotation)
    flag = "--" + name.replace("_", "-")
    switch = flag if field.default is False else f"{flag}/--no-{flag[2:]}"
    flag = switch if annotation is bool else flag
    option = typer.Option(flag, help=f"{field.description} {_default(field)}".strip(), show_default=False)
    return _parameter(name, annotation | None, option)


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    if field.default_factory is not None:
        return "(all cores)"
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if default in (None, False) else f"({default})"


def _on_the_line(annotation: Any) -> Any:
    """The type that Typer parses: the one beside None or a mapping in a union, and a list for a tuple."""
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [a for a in get_args(annotation) if a is not type(None) and get_origin(a) is not dict]
        annotation = str if str in choices else choices[0]
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return list[item if isinstance(item, type) else str]  # type: ignore[misc]
    return annotation
