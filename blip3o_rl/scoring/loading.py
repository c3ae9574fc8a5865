"""Imports the function, class or object that a reward is: from the user's own file, or from an installed module.

A file may import the modules next to it, as a script could, and its own package by name, in every process that scores.
Two reward files in two folders may each have a `helper.py` of their own. Whatever goes wrong while user code is
imported, `sys.exit` included, is a UserError of one line with key and file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.io import user_path

_FOLDERS: set[Path] = set()
"""Folders of the reward files that were loaded in this process."""


def load_file(path: str, key: str) -> Any:
    """The object that `file.py:name` means; UserError if there is none or the file cannot be imported."""
    file_name, separator, attribute = path.rpartition(":")
    if not separator or not attribute.isidentifier():
        raise UserError(f"{key}: is '{path}'; write file.py:function")
    file = user_path(file_name).resolve()
    if not file.is_file():
        raise UserError(f"{key}: there is no file {file}; fix the path (it is relative to {Path.cwd()})")
    name = f"{_package(file.parent)}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {file} is no Python file; the name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up by name
    try:
        with _siblings_first(file.parent):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        place = f"{error.filename or file}:{error.lineno or 1}"
        raise UserError(f"{key}: {place} has a syntax error, {error.msg}; fix it") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # argparse, sys.exit("set MY_KEY") and pytest.skip at module level
        raise UserError(f"{key}: {file} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, str(file), key)


def load_installed(target: str, key: str) -> Any:
    """The object that `package.module:name` means; UserError if there is none or it cannot be imported."""
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: '{target}' needs the module '{error.name}', which is not installed") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{key}: module {module_name} cannot be imported, {type(error).__name__}: {error}") from error
    return _attribute(module, attribute, module_name, key)


def _package(folder: Path) -> str:
    """The name of a package that stands for a folder, so that `from .helper import f` works in its files, too."""
    name = f"blip3o_rl_user_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    return name


@contextlib.contextmanager
def _siblings_first(folder: Path) -> Iterator[None]:
    """The modules in a folder are found first; those of the same name next to other reward files are set aside.

    If the folder is a package, its files may also import from it by its name. Both places stay importable afterwards,
    behind everything else, for imports inside functions.
    """
    above = next(parent for parent in (folder, *folder.parents) if not (parent / "__init__.py").exists())
    _FOLDERS.add(folder)
    others = _FOLDERS - {folder}
    own = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}
    own |= set(folder.relative_to(above).parts[:1])
    aside = {}
    for name, module in list(sys.modules.items()):
        origin = Path(getattr(module, "__file__", None) or "/")
        if name.partition(".")[0] in own and any(origin.is_relative_to(other) for other in others):
            aside[name] = sys.modules.pop(name)
    places = list(dict.fromkeys(map(str, (folder, above))))
    sys.path[:0] = places
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for place in places:
            sys.path.remove(place)
        sys.path += [place for place in places if place not in sys.path]
        sys.modules.update(aside)


def _attribute(module: Any, attribute: str, where: str, key: str) -> Any:
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        public = sorted(name for name, value in vars(module).items() if not name.startswith("_") and callable(value))
        raise UserError(
            f"{key}: {where} has no '{attribute}'{did_you_mean(attribute, public)}; "
            f"it defines {', '.join(public) or 'nothing callable'}"
        ) from error
