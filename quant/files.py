"""Files appear whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Fills a temporary file beside `path`, flushes it to disk and moves it into place.

    Args:
        path: its folder is made where it is missing.
        content: text (UTF-8), bytes, or a function that writes to the path it is given.
    """
    temporary = _beside(path)
    mode = temporary.stat().st_mode
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # some writers put a file of their own in its place
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: str) -> bool:
    """As `write_atomically`, unless the file is there already, whoever makes it first; whether it was written."""
    temporary = _beside(path)
    try:
        temporary.write_text(content, encoding="utf-8")
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _beside(path: Path) -> Path:
    """An empty new file in the same folder, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the file mode creation mask applies
    return temporary
