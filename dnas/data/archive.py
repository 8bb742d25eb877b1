"""Image folders and zips of them, seen alike: a list of files in classes, and their bytes."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dnas.data.types import DataError

PARTS = ("train", "test")
_LAYOUT = "the layout is train/<class>/<image> and, optionally, test/<class>/<image>"
_OTHER_VALIDATION = ("val", "valid", "validation", "dev")
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")


@dataclass(frozen=True, order=True)
class Entry:
    """A file of the data set.

    Attributes:
        part: "train" or "test".
        label: the name of its class.
        name: its path inside the folder or zip.
        size: in bytes.
        stamp: what changes with its content: the time of the last change in a folder, the CRC in a zip.
    """

    part: str
    label: str
    name: str
    size: int
    stamp: int


class Archive(ABC):
    """A readable image folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def files(self) -> tuple[list[tuple[str, int, int]], list[str]]:
        """All files as (path, size, stamp), and all directories, by names with / relative to the root."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: it cannot be read.
            zipfile.BadZipFile: it is damaged, encrypted or packed in an unknown way.
        """

    @abstractmethod
    def where(self, name: str) -> str:
        """The name of a file for error texts."""

    def close(self) -> None:  # noqa: B027
        """Releases the file, if one is open."""


class Folder(Archive):
    """A directory."""

    def files(self) -> tuple[list[tuple[str, int, int]], list[str]]:
        """See `Archive`."""
        found: list[tuple[str, int, int]] = []
        directories: list[str] = []
        for directory, below, names in os.walk(self.path, followlinks=True):
            below[:] = [name for name in below if not _litter((name,))]
            here = Path(directory).relative_to(self.path).as_posix()
            here = "" if here == "." else f"{here}/"
            directories += [here + name for name in below]
            for name in names:
                if not _litter((name,)):
                    try:
                        status = os.stat(os.path.join(directory, name))
                    except OSError as error:
                        raise DataError(
                            f"{self.where(here + name)} cannot be read ({error.strerror}); repair or delete it"
                        ) from error
                    changed = max(status.st_mtime_ns, status.st_ctime_ns)  # copies may keep the former
                    found.append((here + name, status.st_size, changed))
        return found, directories

    def read(self, name: str) -> bytes:
        """See `Archive`."""
        return (self.path / name).read_bytes()

    def where(self, name: str) -> str:
        """See `Archive`."""
        return str(self.path / name)


class Zip(Archive):
    """A zip, read in place."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path} is not a readable zip ({error}); data.path must be a directory or a complete zip: "
                "fetch the file again, or give the directory"
            ) from error
        # a name that is stored twice was updated: the last one counts
        self._infos = {_plain(info.filename): info for info in self._zip.infolist()}

    def files(self) -> tuple[list[tuple[str, int, int]], list[str]]:
        """See `Archive`."""
        found: list[tuple[str, int, int]] = []
        directories: list[str] = []
        for name, info in self._infos.items():
            if _litter(name.split("/")):
                continue
            if info.is_dir() or info.filename.endswith("\\"):
                directories.append(name)
            else:
                found.append((name, info.file_size, info.CRC))
        return found, directories

    def read(self, name: str) -> bytes:
        """See `Archive`."""
        try:
            return self._zip.read(self._infos[name])
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
            raise zipfile.BadZipFile(str(error)) from error

    def where(self, name: str) -> str:
        """See `Archive`."""
        return f"{name} in {self.path}"

    def close(self) -> None:
        """See `Archive`."""
        self._zip.close()


def open_archive(path: Path) -> Archive:
    """The folder or zip at `path`.

    Raises:
        DataError: nothing is there, or it is neither a directory nor a zip.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise DataError(f"data.path is {path}, where nothing exists; give an existing directory or zip; {_LAYOUT}")
    return Zip(path)


def list_images(archive: Archive) -> tuple[tuple[str, ...], list[Entry]]:
    """The classes (sorted by name) and the images (sorted by part, class and name) of a folder.

    Hidden files, `Thumbs.db`, `desktop.ini` and `__MACOSX` are skipped, as are files outside `train` and `test`, but for
    images of the same classes. If all lies in one directory (as many zips have it), that is taken as the root.

    Raises:
        DataError: no images, another layout, files which are no images, an empty class, a single class, a class of
            the test images which has no training images, or images of the classes in another directory.
    """
    files, directories = archive.files()
    if not files:
        raise DataError(f"{archive.path} holds no files; {_LAYOUT}")
    split = [(tuple(name.split("/")), size, stamp) for name, size, stamp in files]
    root = _root([parts for parts, *_ in split])
    suffixes = Image.registered_extensions()
    entries, elsewhere = [], []
    for parts, size, stamp in split:
        inside, name = parts[root:], "/".join(parts)
        if len(inside) > 1 and inside[0] in _OTHER_VALIDATION:
            raise DataError(
                f"{archive.path} holds the directory {inside[0]}; allowed: train and test: move its images to train "
                "(data.validation_share draws the validation images from there), or rename it to test"
            )
        if len(inside) < 2 or inside[0] not in PARTS:
            if len(inside) == 3 and os.path.splitext(name)[1].lower() in suffixes:
                elsewhere.append(inside)
            continue
        if len(inside) != 3:
            raise DataError(f"{archive.where(name)} does not lie in a class directory; {_LAYOUT}: move or delete it")
        if os.path.splitext(name)[1].lower() not in suffixes:
            raise DataError(
                f"{archive.where(name)} is not an image by its name; allowed: the formats which Pillow reads "
                "(.jpg, .png, .bmp, ...): delete it, or convert it"
            )
        entries.append(Entry(inside[0], inside[1], name, size, stamp))
    if not any(entry.part == "train" for entry in entries):
        raise DataError(f"{archive.path} has no images in train/<class>/; {_LAYOUT}")
    _check_classes(archive, entries, [tuple(name.split("/"))[root:] for name in directories])
    labels = {entry.label for entry in entries}
    if others := sorted({part for part, label, _ in elsewhere if label in labels}):
        raise DataError(
            f"{archive.path} holds images of the same classes in {others[0]}, which would not be used; allowed: train and "
            "test: rename it to test, move its images to train, or move it elsewhere"
        )
    return tuple(sorted({entry.label for entry in entries})), sorted(entries)


def _check_classes(archive: Archive, entries: list[Entry], directories: list[tuple[str, ...]]) -> None:
    train = {entry.label for entry in entries if entry.part == "train"}
    if unknown := sorted({entry.label for entry in entries} - train):
        raise DataError(
            f"{archive.path}: the class {unknown[0]} is in test, but not in train; "
            f"the classes of train are {_some(sorted(train))}: rename the directory, or add training images"
        )
    full = {(entry.part, entry.label) for entry in entries}
    for parts in directories:
        if len(parts) == 2 and parts[0] in PARTS and (parts[0], parts[1]) not in full:
            raise DataError(f"{archive.path}: {'/'.join(parts)} holds no images; add some, or delete the directory")
    if len(train) < 2:
        raise DataError(f"{archive.path} has a single class, {min(train)}; at least two are needed; {_LAYOUT}")


def _root(paths: list[tuple[str, ...]]) -> int:
    """How many leading directories to skip: one if the only top directory is not itself a part but holds one."""
    tops = {parts[0] for parts in paths if len(parts) > 1}
    if len(tops) != 1 or tops & {*PARTS, *_OTHER_VALIDATION}:
        return 0
    return 1 if any(len(parts) > 2 and parts[1] in PARTS for parts in paths) else 0


def _plain(name: str) -> str:
    """A name in a zip without leading ./ and with /, which some programs write otherwise."""
    name = name if "/" in name else name.replace("\\", "/")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _litter(parts: Iterable[str]) -> bool:
    return any(part[:1] == "." or part.lower() in _LITTER for part in parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
