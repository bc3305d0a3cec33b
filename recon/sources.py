"""Where settings come from: a module, a file of literals, the command line. Imports no torch."""

import argparse
import ast
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from recon.errors import UserError, quoted

__all__ = [
    "Source",
    "as_flags",
    "described",
    "merge",
    "read_flags",
    "read_module",
    "read_settings_file",
]

Model = TypeVar("Model", bound=BaseModel)


class Source(NamedTuple):
    """Values and the place that gave them, for error messages."""

    place: str
    values: Mapping[str, Any]


def read_module(config: ModuleType | Mapping[str, Any]) -> Source:
    """Take the settings out of `Config.py`: every name but private ones, modules and functions."""
    names = vars(config) if isinstance(config, ModuleType) else config
    values = {
        name: value
        for name, value in names.items()
        if not name.startswith("_") and not isinstance(value, ModuleType | FunctionType | type)
    }
    return Source("Config.py", values)


def read_settings_file(path: Path) -> Source:
    """Read a file of `name = literal` lines without running it.

    Raises:
        UserError: If it cannot be read or holds anything else.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    # Not UTF-8, null bytes, or nested too deeply.
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise UserError(f"--config {path} cannot be read: {reason}") from None
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # A docstring.
        name = _assigned_name(node)
        if name is None:
            raise UserError(
                f"{path}:{node.lineno} must be `name = value`, a comment or a docstring"
            )
        values[name] = _literal_of(node, path)
    return Source(str(path), values)


def _assigned_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _literal_of(node: ast.stmt, path: Path) -> Any:
    try:
        return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f"{path}:{node.lineno} must be a literal, such as 3, 1e-3, 'text', True or (1, 2)"
        ) from None


class _Parser(argparse.ArgumentParser):
    """argparse, but with errors of one line, raised instead of printed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists every setting")


def read_flags(
    argv: Sequence[str],
    sections: Sequence[type[BaseModel]],
    configured: Mapping[str, Any],
    about: str | None = None,
) -> tuple[Source, list[str]]:
    """Parse the command line.

    Args:
        argv: Arguments without the program's name.
        sections: Settings classes, a heading of `--help` each.
        configured: Values of `Config.py`, shown by `--help` where they differ from the default.
        about: What the program does, for `--help`: its docstring.

    Returns:
        The flags that were given, and the settings files in their order.

    Raises:
        UserError: For anything that is not a flag of a setting.
    """
    parser = _Parser(
        usage="%(prog)s [--config FILE] [--name value ...]",
        # Its first paragraph: lines further down are laid out by hand.
        description=about and about.partition("\n\n")[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="a file of settings"
    )
    for section in sections:
        group = parser.add_argument_group(section.title, section.__doc__)  # type: ignore[attr-defined]
        for name, field in section.model_fields.items():
            group.add_argument(
                f"--{name}", metavar="X", help=_help(name, field, configured).replace("%", "%%")
            )
    known, unknown = parser.parse_known_args(argv)
    given = vars(known)
    files = given.pop("config")
    fields = {name: field for section in sections for name, field in section.model_fields.items()}
    if unknown:
        _refuse_argument(unknown[0], list(fields))
    values = {name: _parse(text, fields[name]) for name, text in given.items()}
    return Source("the command line", values), files


def described(field: FieldInfo) -> str:
    """What a setting is, and the values that it may have."""
    return f"{field.description}{_range(field)}"


def _help(name: str, field: FieldInfo, configured: Mapping[str, Any]) -> str:
    text = f"{described(field)} [default: {field.default!r}]"
    if name in configured and configured[name] != field.default:
        text += f" [Config.py: {configured[name]!r}]"
    return text


def _range(field: FieldInfo) -> str:
    """The values that a setting may have, where its type says so."""
    if get_origin(field.annotation) is Literal:
        return f" [one of {', '.join(map(str, get_args(field.annotation)))}]"
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return f" [{', '.join(bounds)}]" if bounds else ""


def _refuse_argument(argument: str, names: list[str]) -> NoReturn:
    if argument.startswith("--"):
        raise UserError(_unknown(argument[2:].split("=")[0], "the command line", names))
    raise UserError(f"unexpected argument {argument!r}; settings are given as --name value")


def _parse(text: str, field: FieldInfo) -> Any:
    """Text for a setting that takes text; otherwise the Python literal that it spells."""
    if field.annotation is str or get_origin(field.annotation) is Literal:
        return text
    words = {"true": "True", "false": "False"}
    if type(None) in get_args(field.annotation):
        words["none"] = "None"
    try:
        return ast.literal_eval(words.get(text.lower(), text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def as_flags(settings: BaseModel, names: Sequence[str]) -> str:
    """Spell settings as the flags that would give them again, quoted for a shell."""
    flags: list[str] = []
    for name in names:
        value = str(getattr(settings, name))
        # A value that looks like a flag must be joined to its own.
        flags += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
    return shlex.join(flags)


def merge(model: type[Model], sources: Sequence[Source]) -> Model:
    """Validate the sources together, later ones winning.

    Raises:
        UserError: Naming the setting, the value, the rule and where it came from.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for source in sources:
        for name, value in source.values.items():
            if name not in model.model_fields:
                raise UserError(_unknown(name, source.place, list(model.model_fields)))
            values[name] = value
            places[name] = source.place
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], values, places)) from None


def _unknown(name: str, place: str, names: list[str]) -> str:
    folded = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else "; --help lists every setting"
    return f"unknown setting {quoted(name)} in {place}{hint}"


def _explain(error: ErrorDetails, values: Mapping[str, Any], places: Mapping[str, str]) -> str:
    name = str(error["loc"][0])
    rule = error["msg"].removeprefix("Value error, ")
    rule = re.sub(r"^(Input|Tuple|String|Dictionary|Keys) should", "must", rule)
    rule = "must have more values" if error["type"] == "missing" else rule
    return f"{name} {rule}, got {quoted(values[name])} in {places[name]}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
