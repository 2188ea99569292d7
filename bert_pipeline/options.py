"""Command-line options generated from a stage's config model: each option is declared once."""

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from bert_pipeline.config import (
    Argument,
    Choice,
    StageConfig,
    build_config,
    flag,
    read_section,
    reject_unknown,
)
from bert_pipeline.recipe import SECTIONS
from bert_pipeline.stages import Stage


class Commands(TyperGroup):
    """The commands; errors of their options are without what pydantic puts before the reason."""

    def invoke(self, ctx: Any) -> Any:
        """Parse the options of the command, and run it."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def stage_command(app: typer.Typer, name: str, stage: Stage) -> None:
    """Register a stage as `bertpipe <name>`.

    A value comes from the command line, else from the `<name>:` section of the `--config` file,
    else it is the default.
    """

    def command(config: Path | None = None, **options: Any) -> None:
        values = read_section(config, name, SECTIONS) if config else {}
        reject_unknown(values, stage.config.model_fields, f"{config}, {name}: option")
        values |= {key: value for key, value in options.items() if value not in (None, [])}
        stage.run(build_config(stage.config, values))

    help_text = f"Recipe whose `{name}:` section sets options; the command line overrides it."
    config_option = typer.Option(help=help_text, show_default=False)
    config_parameter = _parameter("config", Path | None, config_option)
    fields = ordered_fields(stage.config)
    parameters = [*(_from_field(key, field) for key, field in fields), config_parameter]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=stage.help)(command)


def ordered_fields(model: type[StageConfig]) -> list[tuple[str, FieldInfo]]:
    """The fields of a config as `--help` lists them: a stage's own first, shared ones last."""
    fields = model.model_fields
    inherited = [set(getattr(base, "model_fields", {})) for base in model.__mro__[1:]]
    return sorted(fields.items(), key=lambda item: sum(item[0] in names for names in inherited))


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The values that an option allows, when it allows only some; else nothing."""
    for annotation in field.metadata:
        if isinstance(annotation, Choice):
            return annotation.names
    literal = _parsed_type(field.annotation)
    return get_args(literal) if get_origin(literal) is Literal else ()


def _from_field(name: str, field: FieldInfo) -> inspect.Parameter:
    # None means "not given on the command line", so that the YAML file can set the value; the help
    # shows the real default.
    annotation = _parsed_type(field.annotation)
    option = flag(name)
    if annotation is bool and field.default is not False:
        option = f"{option}/--no-{option[2:]}"
    if choices := choices_of(field):
        annotation = Literal[choices]
    if is_argument(field):
        argument = typer.Argument(help=field.description, metavar=name.upper(), show_default=False)
        return _parameter(name, annotation | None, argument)
    help_text = f"{field.description} {describe_default(field)}".strip()
    return _parameter(
        name, annotation | None, typer.Option(option, help=help_text, show_default=False)
    )


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def is_argument(field: FieldInfo) -> bool:
    """Whether the command line takes the value without the name of the option."""
    return any(isinstance(annotation, Argument) for annotation in field.metadata)


def describe_default(field: FieldInfo) -> str:
    """The default of an option in brackets; empty when it is unset or off."""
    if field.is_required():
        return "(required)"
    if field.default_factory is not None:
        return "(all cores)"
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if default in (None, False, "") else f"({default})"


def _parsed_type(annotation: Any) -> Any:
    """The type that Typer parses: of a union its main member, of a tuple a list."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [
            a for a in get_args(annotation) if a is not type(None) and get_origin(a) is not dict
        ]
        annotation = str if str in members else members[0]
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return list[item if isinstance(item, type) else str]  # type: ignore[misc]
    return annotation
