"""MODULE:OBJECT -> the worker that it names."""

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from streams_queue.errors import ConfigurationError
from streams_queue.worker import Worker


def load_worker(target: str) -> Worker[Any]:
    """Import the module, from the current directory first, and take the worker out of it.

    Raises:
        ConfigurationError: there is no such module or object, it is no `Worker`, or the module cannot be imported
            (its own traceback is on stderr then).
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigurationError(f"{target!r} is not MODULE:OBJECT: write for example myapp.jobs:worker")
    module = _imported(module_name)
    if not hasattr(module, name):
        raise ConfigurationError(f"module {module_name} has no {name!r}{_suggestion(module)}")
    found = getattr(module, name)
    if not isinstance(found, Worker):
        raise ConfigurationError(
            f"{target} is of type {type(found).__name__}, not a streams_queue.Worker{_suggestion(module)}"
        )
    return found


def _imported(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  (sys.path holds strings)
    try:
        return importlib.import_module(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"module {name}: {error}") from None
    except SystemExit as error:
        raise ConfigurationError(
            f"module {name} ends the process while it is imported (exit code {error.code!r:.200}): put what only a "
            "program does below `if __name__ == '__main__':`"
        ) from None
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"no module {name!r}: write it as an import statement would, "
                f"and start in the directory that holds it (now {sys.path[0]})"
            ) from None
        traceback.print_exception(error)
        raise ConfigurationError(f"module {name} cannot be imported: see the traceback above") from error


def _suggestion(module: ModuleType) -> str:
    workers = [f"{module.__name__}:{name}" for name, value in vars(module).items() if isinstance(value, Worker)]
    if workers:
        return f": did you mean {' or '.join(workers)}?"
    return ": name a Worker made there, as in `worker = Worker(queue)`"
