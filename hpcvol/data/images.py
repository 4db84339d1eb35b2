"""Transforms that decode pictures which a dataset keeps as encoded bytes.

`data.transform = "hpcvol.data.images:augment"` and `data.eval_transform = "hpcvol.data.images:decode"` make pictures of
224 by 224. Other sizes, in a file of one's own that the configuration names (`pictures.py:augment`):

    from hpcvol.data.images import CenterCrop, RandomCrop
    augment, decode = RandomCrop(64), CenterCrop(64)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.errors import DataError

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class CenterCrop:
    """The middle of each picture, scaled to a square: for validation.

    Called with a batch that has `field`: uint8[k, longest] and `{field}_length`: int64[k]; returns it with `field`:
    uint8[k, 3, size, size] instead of both.

    Args:
        size: of the result, in pixels.
        share: of the shorter side that is kept.
        field: name of the field of encoded bytes.
    """

    size: int
    share: float = 0.875
    field: str = "image"

    def __call__(self, batch: Mapping[str, Any], _rng: np.random.Generator) -> dict[str, Any]:
        """Decode a batch."""
        return _each(batch, self.field, self.size, self._crop)

    def _crop(self, image: Any) -> Pixels:
        width, height = image.size
        side = self.share * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return _scaled(image, self.size, (left, top, left + side, top + side))


@dataclass(frozen=True)
class RandomCrop:
    """A random part of each picture, scaled to a square and mirrored at random: for training.

    What is drawn depends on the unit's generator alone. Batches are those of `CenterCrop`.

    Args:
        size: of the result, in pixels.
        least_share: of the area that is kept at least.
        most_stretch: ratio of the sides of the part, at most (and at least its inverse).
        field: name of the field of encoded bytes.

    References:
        Szegedy et al., Going deeper with convolutions, CVPR 2015 (section 6).
    """

    size: int
    least_share: float = 0.08
    most_stretch: float = 4 / 3
    field: str = "image"

    def __call__(self, batch: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Decode a batch."""
        return _each(batch, self.field, self.size, lambda image: self._crop(image, rng))

    def _crop(self, image: Any, rng: np.random.Generator) -> Pixels:
        width, height = image.size
        share, stretch, across, down, mirror = rng.random(5)  # always five: what one picture draws is never another's
        area = width * height * (self.least_share + share * (1 - self.least_share))
        ratio = self.most_stretch ** (2 * stretch - 1)
        wide, high = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        left, top = across * (width - wide), down * (height - high)
        pixels = _scaled(image, self.size, (left, top, left + wide, top + high))
        return pixels[:, :, ::-1] if mirror < 0.5 else pixels


decode = CenterCrop(224)
augment = RandomCrop(224)


def decoded(data: Pixels, *, header_only: bool = False) -> Any:
    """Return the Pillow image of encoded bytes, in RGB; its header alone is looked at where that is enough.

    Raises:
        ValueError: the bytes are no picture, or not all of one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(BytesIO(data.tobytes()))
        return image if header_only else image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("it is in no format that Pillow knows") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _each(batch: Mapping[str, Any], field: str, size: int, crop: Any) -> dict[str, Any]:
    if field not in batch or f"{field}_length" not in batch:
        raise DataError(f"the batch has no ragged field {field!r} of encoded pictures; it has {', '.join(batch)}")
    encoded, lengths = np.asarray(batch[field]), np.asarray(batch[f"{field}_length"])
    out = np.empty((len(encoded), 3, size, size), np.uint8)
    for i, (data, length) in enumerate(zip(encoded, lengths, strict=True)):
        try:
            out[i] = crop(decoded(data[:length]))
        except ValueError as error:
            raise DataError(f"sample {i} of a unit is a broken picture (field {field!r}): {error}") from error
    return {name: value for name, value in batch.items() if name != f"{field}_length"} | {field: out}


def _scaled(image: Any, size: int, box: Box) -> Pixels:
    from PIL import Image

    scaled = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled).transpose(2, 0, 1)
