"""The flags of launch.py: what of them cannot be read ends in one sentence, before any work."""

import ast
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags

from refine_jax import fields
from refine_jax.errors import RefineError, SettingError, did_you_mean

# Flags that need no value.
_SWITCHES = ("overwrite", "keep_compiled")
_PARSERS: dict[type, flags.ArgumentParser] = {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    bool: flags.BooleanParser(),
}


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the command line into the flags that are defined, --config and --workdir among them.

    Args:
        argv: The program's name, and its arguments.

    Returns:
        The name again, and the arguments that belong to no flag.

    Raises:
        RefineError: The first flag that is unknown, missing, or has a value that cannot be.
    """
    path = ""
    for name, value in _given(argv[1:]):
        if name == "config":
            path = check_file(value)
        elif name in _SWITCHES:
            _check_text(name, value, bool)
        elif name.startswith(("config.", "noconfig.")):
            field = name.partition(".")[2]
            fields.check_field(field, value)
            _check_text(field, value, fields.type_of(field))
    values = flags.FLAGS
    try:
        rest = values(argv)
        if not path:
            check_file(path)
        config = values["config"].value
        getattr(config, "seed", None)  # an error of reading is kept back until something is asked for
        if not isinstance(config, ml_collections.ConfigDict):
            raise RefineError(f"{path}: get_config() gives no ConfigDict: begin with settings.default()")
    except Exception as error:
        raise explain(error, path, argv[0]) from error
    if not values["workdir"].value:
        raise SettingError("workdir", values["workdir"].value, "a directory; it is made where it is not there")
    return rest


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of the flags, of those with a value in the next argument too."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            yield name, value if equals or name.startswith(("no", *_SWITCHES)) else following


def read_field(argument: str) -> tuple[str, Any]:
    """Returns the dotted name and the value of --config.FIELD=VALUE, for programs without absl's flags.

    Raises:
        RefineError: It is no such flag.
        SettingError: There is no such field, or the value is of another type.
    """
    name, equals, text = argument.lstrip("-").partition("=")
    if not argument.startswith("--config.") or not equals:
        raise RefineError(f"{argument!r} belongs to no flag: fields are written --config.FIELD=VALUE")
    field = name.partition(".")[2]
    fields.check_field(field, text)
    kind = fields.type_of(field)
    _check_text(field, text, kind)
    if kind is tuple:
        value = _literal(text)
        return field, value if isinstance(value, tuple) else (value,)
    return field, _PARSERS[kind].parse(text) if kind in _PARSERS else text


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def check_file(value: str, function: str = "get_config", folder: str = "configs") -> str:
    """Returns the path of a configuration's file, as in PATH or PATH:VARIANT.

    Args:
        value: That was given.
        function: That the file has, for the error.
        folder: Where examples lie, where no other is named.

    Raises:
        SettingError: There is no such file; which there are.
    """
    path = value.partition(":")[0]
    if not pathlib.Path(path).is_file():
        place = pathlib.Path(path).parent if path else pathlib.Path(folder)
        there = sorted(str(file) for file in place.glob("*.py"))
        examples = f", such as {', '.join(there)}" if there else ""
        raise SettingError("config", value, f"a file with a {function}(){examples}{did_you_mean(path, there)}")
    return path


def _check_text(field: str, text: str, kind: type) -> None:
    """Refuses what cannot be read as a value of this type."""
    try:
        if kind is tuple:
            ast.literal_eval(text)
        elif kind in _PARSERS and not (kind is bool and text == ""):
            _PARSERS[kind].parse(text)
    except SyntaxError:
        raise SettingError(field, text, fields.KINDS[kind]) from None
    except ValueError:
        if kind is not tuple:  # a word that is no literal is a tuple of one string
            raise SettingError(field, text, fields.KINDS[kind]) from None


def explain(error: BaseException, path: str, program: str) -> RefineError:
    """Returns as a sentence what went wrong in reading flags.

    Args:
        error: From absl, from ml_collections, or from the configuration's file.
        path: Of this file.
        program: Name of the program, whose flags are listed for one that is unknown.

    Returns:
        The error to raise in its place.
    """
    if isinstance(error, flags.UnrecognizedFlagError):
        there = [f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(program)]
        given = f"--{error.flagname}"
        return RefineError(f"{given}: no such flag, only {', '.join(there)}{did_you_mean(given, there)}")
    chain = [error]  # ml_collections wraps what is raised in the file, and absl wraps it again
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for inner in reversed(chain):
        if isinstance(inner, RefineError):
            return inner
        if isinstance(inner, SyntaxError) and inner.filename == path:
            return RefineError(f"{path}, line {inner.lineno}: {inner.msg}")
        lines = [frame.lineno for frame in traceback.extract_tb(inner.__traceback__) if frame.filename == path]
        if lines:
            return RefineError(f"{path}, line {lines[-1]}: {type(inner).__name__}: {inner}")
    if "get_config" in str(chain[-1]):  # there is none, or it takes no variant
        return RefineError(f"{path}: {chain[-1]}")
    return RefineError(str(error) if isinstance(error, flags.Error) else f"{path}: {type(error).__name__}: {error}")
