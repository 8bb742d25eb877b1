"""The image folder source, with its cache of decoded images."""

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from hydra.utils import to_absolute_path
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dnas.data.archive import PARTS, Archive, Entry, list_images, open_archive
from dnas.data.config import DataConfig, default_cache, size_of
from dnas.data.pictures import check_same, decode, unreadable
from dnas.data.types import DataError, Pool, Split

_LOG = logging.getLogger(__name__)
_FORMAT = "dnas-images-1"
_THREADS_FROM = 50_000  # bytes: below, threads only contend for the interpreter


def load_folder(config: DataConfig) -> Pool:
    """The images of a folder or zip, decoded at the first use and read from the cache afterwards.

    Raises:
        DataError: see `list_images`, `decode` and `check_same`.
    """
    if config.path is None:
        raise DataError("data.path has no value; give an image folder or a zip of one: data.path=/path/to/images.zip")
    path = Path(to_absolute_path(os.path.expanduser(config.path)))
    archive = open_archive(path)
    try:
        classes, entries = list_images(archive)
        cache = _cache_file(config, path, entries)
        tensors = _read_cache(cache, entries) if cache is not None else None
        if tensors is None:
            tensors = _decode_all(archive, classes, entries, config)
            if cache is not None:
                _write_cache(cache, tensors)
    finally:
        archive.close()
    splits = {part: Split(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in _parts(entries)}
    return Pool(classes, splits["train"], splits.get("test"))


def _parts(entries: list[Entry]) -> list[str]:
    present = {entry.part for entry in entries}
    return [part for part in PARTS if part in present]


def _decode_all(
    archive: Archive, classes: tuple[str, ...], entries: list[Entry], config: DataConfig
) -> dict[str, Tensor]:
    started = time.perf_counter()
    size = size_of(config)
    first: tuple[tuple[int, ...], str] | None = None
    labels = {name: label for label, name in enumerate(classes)}
    tensors: dict[str, Tensor] = {}
    for part in _parts(entries):
        mine = [entry for entry in entries if entry.part == part]
        images: Tensor | None = None
        for number, (entry, array) in enumerate(_arrays(archive, mine, config.channels, size)):
            where = archive.where(entry.name)
            first = first or (array.shape, where)
            check_same(array.shape, where, *first)
            if images is None:
                images = torch.empty((len(mine), *array.shape), dtype=torch.uint8)
                target = images.numpy()
            target[number] = array
        if images is not None:
            tensors[f"{part}.images"] = images
            tensors[f"{part}.labels"] = torch.tensor([labels[entry.label] for entry in mine])
    _LOG.info("decoded %d images in %.1f s", len(entries), time.perf_counter() - started)
    return tensors


def _arrays(
    archive: Archive, entries: list[Entry], channels: int | None, size: tuple[int, int] | None
) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """The entries with their images uint8 [c, h, w], in order; by several threads if the files are large."""

    def one(entry: Entry) -> tuple[Entry, NDArray[np.uint8]]:
        where = archive.where(entry.name)
        try:
            content = archive.read(entry.name)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(unreadable(where, error)) from error
        return entry, decode(content, where, channels, size)

    if sum(entry.size for entry in entries) < _THREADS_FROM * len(entries):
        yield from map(one, entries)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(entries), 1024):  # bounds the number of decoded images in flight
            yield from pool.map(one, entries[begin : begin + 1024])


def _cache_file(config: DataConfig, path: Path, entries: list[Entry]) -> Path | None:
    """Where the decoded images belong: the name changes with the files and with what is made of them."""
    if config.cache is None:
        return None
    identity = [_FORMAT, config.channels, size_of(config), sorted([e.name, e.size, e.stamp] for e in entries)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    root = default_cache() if config.cache == "default" else config.cache
    return Path(to_absolute_path(os.path.expanduser(root))) / f"{path.stem}-{key[:32]}.safetensors"


def _read_cache(cache: Path, entries: list[Entry]) -> dict[str, Tensor] | None:
    """The cached tensors, or None if there are none or the file is damaged."""
    if not cache.is_file():
        return None
    try:
        tensors = load_file(cache)
    except (SafetensorError, OSError) as error:
        _LOG.warning("the cache file %s is damaged (%s); decoding the images again", cache, error)
        return None
    for part in _parts(entries):
        images = tensors.get(f"{part}.images")
        if images is None or len(images) != sum(entry.part == part for entry in entries):
            _LOG.warning("the cache file %s does not fit its data; decoding the images again", cache)
            return None
    return tensors


def _write_cache(cache: Path, tensors: dict[str, Tensor]) -> None:
    """Writes beside the target and renames, so that no other process ever sees half a file."""
    temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, cache)
    except (OSError, SafetensorError) as error:
        _LOG.warning(
            "the decoded images cannot be kept in %s (%s), so that the next start decodes them again; "
            "set data.cache to a writable directory, or to null",
            cache.parent,
            error,
        )
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
