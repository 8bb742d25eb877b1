"""From encoded images to uint8 arrays of one shape."""

import io
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dnas.data.types import DataError

_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "F")  # I;16 and its relatives start with "I"
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def decode(content: bytes, where: str, channels: int | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """An encoded image as uint8 [c, h, w]; of an animation, the first picture.

    Args:
        content: the file.
        where: its name, for the error text.
        channels: see `convert`.
        size: see `convert`.

    Raises:
        DataError: the image is corrupt, truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return convert(image, where, channels, size)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(unreadable(where, error)) from error


def unreadable(where: str, error: Exception) -> str:
    """The error text for a file which cannot be read or decoded."""
    return f"{where} cannot be decoded as an image ({error}); replace the file by an intact one, or delete it"


def convert(image: Image.Image, where: str, channels: int | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A picture as uint8 [c, h, w].

    Args:
        image: with 8 bits for each channel; transparency is dropped, palettes and CMYK become RGB.
        where: its name, for the error text.
        channels: 1 converts to grey, 3 to RGB, None keeps which of the two it is.
        size: (height, width) to scale and cut it to, or None to keep its size.

    Raises:
        DataError: more than 8 bits for each channel.
    """
    if image.mode.startswith(_DEEP):
        raise DataError(
            f"{where} has the mode {image.mode}, more than 8 bits a channel; allowed: 8-bit images: "
            "convert the file, or load it by data.source=dataset as a float tensor"
        )
    if channels is None:
        channels = 1 if image.mode in _GREY else 3
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    array: NDArray[Any] = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def check_same(shape: tuple[int, ...], where: str, first: tuple[int, ...], first_where: str) -> None:
    """Compares an image's shape [c, h, w] with that of the first image.

    Raises:
        DataError: they differ.
    """
    if shape == first:
        return
    if len(shape) == len(first) == 3 and shape[1:] != first[1:]:
        raise DataError(
            f"{where} is {shape[1]}x{shape[2]} (height x width), but {first_where} is {first[1]}x{first[2]}; "
            "all images need one size: set data.image_size=n or data.image_size=[height,width] to scale them"
        )
    if len(shape) == len(first) == 3:
        raise DataError(
            f"{where} has {shape[0]} channel(s), but {first_where} has {first[0]}; "
            "set data.channels=3 to convert all images to RGB, or data.channels=1 to convert them to grey"
        )
    raise DataError(
        f"{where} has the shape {list(shape)}, but {first_where} has {list(first)}; "
        "all images need one shape: make the data set deliver them so"
    )
