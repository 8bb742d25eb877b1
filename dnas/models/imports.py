"""Finding a user's code."""

import importlib
import sys

from hydra.utils import to_absolute_path


def make_working_directory_importable() -> None:
    """Lets modules in the directory in which the command was started be imported, as `python -m` does.

    Installed commands do not have that directory on `sys.path`. It is appended, so that it never hides an installed
    package, and stays there, because a module found in it may import others later.
    """
    directory = to_absolute_path(".")
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)
    importlib.invalidate_caches()
