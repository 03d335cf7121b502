"""Methods, networks, data sets and metrics of the user, in files outside the package.

A file registers what it defines when it is imported:

    import pfljax

    @pfljax.register_method
    def my_method(task, local, *, lam: float = 0.1): ...

Commands import it with `--import=FILE`, Python code with `import_file(FILE)` or an ordinary import.
After that, its names are used like those of the package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pfljax.errors import UserError

_IMPORTED: dict[str, ModuleType] = {}
# The registered names of the user by the id of the registry, which may be registered again.
_OWN: dict[int, set[str]] = {}


def imported() -> tuple[str, ...]:
    """Returns the absolute paths of the imported files."""
    return tuple(_IMPORTED)


def import_file(path: str | Path) -> ModuleType:
    """Imports a Python file, such as one with a method of the user.

    Importing a file again does nothing.

    Args:
      path: The file.

    Returns:
      The module.

    Raises:
      UserError: The file does not exist, or its code raises an exception.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "mine.py"
      >>> _ = file.write_text("answer = 42")
      >>> import_file(file).answer
      42
    """
    found = Path(path).resolve()
    if str(found) in _IMPORTED:
        return _IMPORTED[str(found)]
    # Two files of one name are different modules.
    name = f"{found.stem}_{hashlib.sha256(str(found).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, found)
    if spec is None or spec.loader is None or not found.is_file():
        raise UserError(f"{path} is not a Python file: check the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        line = _line_in(error, str(found))
        raise UserError(
            f"{path} cannot be imported: {type(error).__name__}{line}: "
            f"{' '.join(str(error).split())}"
        ) from error
    _IMPORTED[str(found)] = module
    return module


def _line_in(error: Exception, file: str) -> str:
    """Returns ' in line N' for the last line of a file in the traceback; '' for none."""
    number = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            number = trace.tb_lineno
        trace = trace.tb_next
    return "" if number is None else f" in line {number}"


def register(
    kind: str, registry: MutableMapping[str, Any], name: str, value: Callable[..., Any] | Any
) -> None:
    """Adds an entry to a registry.

    Args:
      kind: What is registered, for the error message.
      registry: The registry, `{name: value}`.
      name: The new name; a name that the user registered before is replaced, so that a cell of a
        notebook can run twice.
      value: The entry.

    Raises:
      UserError: The name is one of the package, or not a valid name.
    """
    if not name.isidentifier():
        raise UserError(
            f"The name of a {kind} must consist of letters, digits and underscores, not {name!r}."
        )
    own = _OWN.setdefault(id(registry), set())
    if name in registry and name not in own:
        raise UserError(f"pfljax has a {kind} {name!r} already: choose another name.")
    own.add(name)
    registry[name] = value
