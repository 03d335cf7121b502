"""Command-line handling that ml_collections lacks.

The arguments of a model are keys of `config.model` that depend on the model and may be missing in
the config file. For an unknown key, the error suggests the nearest known one.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections

from pfljax import extensions, models
from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_checks, config_values, model_arguments

# Names in other libraries that are spelled too differently from our keys to be matched.
_SYNONYMS = {
    "clients": "data.num_clients",
    "dataset": "data.name",
    "method": "algorithm",
    "optimizer": "client_optimizer.name",
    "gpus": "engine.devices",
}


def import_files(argv: Sequence[str]) -> None:
    """Imports the files of `--import`, whose methods and data sets the config knows then.

    Args:
      argv: The command line.

    Raises:
      UserError: A file cannot be imported.
    """
    words = [re.fullmatch(r"--?import(?:=(.*))?", word, re.DOTALL) for word in argv]
    for number, match in enumerate(words):
        if match and match[1] is not None:
            extensions.import_file(match[1])
        elif match and number + 1 < len(argv):
            extensions.import_file(argv[number + 1])


def with_config_files(argv: Sequence[str]) -> list[str]:
    """Returns a command line with the files of configs that are named, such as `quickstart`.

    Args:
      argv: The command line.

    Raises:
      UserError: There is no config of this name.
    """
    found, is_value = [], False
    for word in argv:
        match = re.fullmatch(r"(--?config=)?([^=]*)", word, re.DOTALL)
        if match and (match[1] or is_value):
            word = f"{match[1] or ''}{_config_file(match[2])}"
        is_value = word in ("-config", "--config")
        found.append(word)
    return found


def _config_file(named: str) -> str:
    """Returns the file of a config of this package; a path unchanged."""
    name, colon, argument = named.partition(":")
    if not re.fullmatch(r"\w+", name) or pathlib.Path(name).exists():
        return named
    package = pathlib.Path(extensions.__file__).parent
    # In an installed package, or beside it in the source tree.
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.py").is_file():
            return f"{folder / name}.py{colon}{argument}"
        known = sorted(path.stem for path in folder.glob("[a-z]*.py"))
        if known:
            raise UserError(
                f"--config={name} is neither a file nor one of the configs {', '.join(known)}."
                f"{config_values.suggest(name, known)}"
            )
    return named


def split_model_arguments(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates the arguments of models from the rest of a command line.

    Example:
      >>> split_model_arguments(['train.py', '--config.model.widths=(5,)', '--resume'])
      (['train.py', '--resume'], {'model.widths': '(5,)'})
    """
    rest, found = [], {}
    keys = "|".join(map(re.escape, config_lib.model_keys()))
    words = iter(range(len(argv)))
    for at in words:
        match = re.fullmatch(rf"--?(no)?config\.((?:{keys})\.(\w+))(?:=(.*))?", argv[at], re.DOTALL)
        if not match or match[3] == "name":
            rest.append(argv[at])
        elif match[1]:
            found[match[2]] = "false"
        elif match[4] is not None:
            found[match[2]] = match[4]
        elif at + 1 < len(argv) and not argv[at + 1].startswith("-"):
            found[match[2]] = argv[next(words)]
        else:
            found[match[2]] = "true"
    return rest, found


def set_model_arguments(config: ml_collections.ConfigDict, arguments: dict[str, str]) -> None:
    """Sets arguments of models from the command line, in the types that the models declare.

    Args:
      config: The config; changed in place.
      arguments: The arguments of the command line, by key, such as 'model.widths'.

    Raises:
      UserError: A model has no such argument, or a value has another type.
    """
    for key, text in arguments.items():
        of_model, _, argument = key.rpartition(".")
        settings = config_values.at(config, of_model)
        if not settings.name:
            raise UserError(
                f"config.{key} is an argument of a model that has no name; set "
                f"config.{of_model}.name."
            )
        config_values.require_known("model", settings.name, models.MODELS)
        kinds = model_arguments.types_of(settings.name)
        config_values.require_known(f"argument of the model {settings.name}", argument, kinds)
        with config.unlocked(), settings.ignore_type():
            settings[argument] = _parsed(f"config.{key}", text, kinds[argument])


def _parsed(key: str, text: str, kind: Any) -> Any:
    value: Any = text
    if kind is str:
        value = text.strip("'\"")
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return model_arguments.converted(key, value, kind)


def listing(config: ml_collections.ConfigDict) -> str:
    """Returns a line for each key of a config, including the arguments of its models."""
    lines = config_values.flat(config)
    for key in config_lib.model_keys():
        factory = models.MODELS.get(config_values.at(config, key).name)
        if factory is None:
            continue
        for name, parameter in list(inspect.signature(factory).parameters.items())[2:]:
            known = parameter.default is not parameter.empty
            lines.setdefault(f"{key}.{name}", parameter.default if known else None)
    return "".join(f"config.{key} = {value!r}\n" for key, value in sorted(lines.items()))


def require_known_keys(argv: Iterable[str]) -> None:
    """Raises a `UserError` for the first unknown config key on a command line."""
    default = config_lib.default_config()
    known = list(config_values.flat(default))
    is_open = tuple(f"{key}." for key in config_checks.open_keys())
    nodes = {key[:end] for key in known for end in range(len(key)) if key[end] == "."}
    for word in argv:
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", word)
        if match and match[1] in config_lib.model_keys():
            raise UserError(
                f"config.{match[1]} has keys of its own; set config.{match[1]}.name to the model."
            )
        if match and match[1] not in {*known, *nodes} and not match[1].startswith(is_open):
            raise UserError(
                f"Unknown config key {match[1]!r}.{nearest(match[1], known)} --print_config lists "
                "all keys."
            )


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean KEY?` for the nearest of nested keys, or ''.

    Example:
      >>> nearest('lr', ['rounds', 'client_optimizer.learning_rate'])
      ' Did you mean client_optimizer.learning_rate?'
    """
    known = list(known)
    last = word.split(".")[-1]
    if _SYNONYMS.get(last) in known:
        return f" Did you mean {_SYNONYMS[last]}?"

    def likeness(key):
        own = _likeness(last, key.split(".")[-1])
        if "." not in word:
            return own - 0.03 * key.count(".")  # prefers the outer one of two equal keys
        return (own + difflib.SequenceMatcher(None, word, key).ratio()) / 2

    best = max(known, key=likeness, default=None)
    return f" Did you mean {best}?" if best is not None and likeness(best) >= 0.6 else ""


def _likeness(word: str, name: str) -> float:
    """Returns the similarity of a word and the last part of a key, from 0 to 1."""
    if word == name:
        return 1.0
    if len(word) > 1 and word == "".join(part[:1] for part in name.split("_")):
        return 0.95
    short, long = sorted((word, name), key=len)
    part = 0.7 + 0.2 * len(short) / len(long) if len(short) > 2 and short in long else 0.0
    return max(part, difflib.SequenceMatcher(None, word, name).ratio())
