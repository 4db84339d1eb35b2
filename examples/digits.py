"""Handwritten digits: scikit-learn's 1797 images of 8 x 8, read by a small network. Seconds of training."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def samples() -> Iterator[dict[str, NDArray[np.float32] | np.int64]]:
    """Yield each image as `x`: float32[64] in 0..1, and what it shows as `y`: int64."""
    from sklearn.datasets import load_digits  # takes seconds, and training does not need it once the dataset is built

    images, labels = load_digits(return_X_y=True)
    for image, label in zip(images, labels, strict=True):
        yield {"x": (image / 16).astype(np.float32), "y": np.int64(label)}


class Digits(nn.Module):
    """Two layers; dropout, so that resuming and dealing of units have random numbers to keep right."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of the images `x`: float32[B, 64] with labels `y`: int64[B], and the share read."""
        logits = self.layers(x)
        right = logits.argmax(dim=1) == y
        return {"loss": functional.cross_entropy(logits, y), "accuracy": right.float().mean()}


def build(width: int = 128, dropout: float = 0.2) -> nn.Module:
    """Return the model that the configuration names."""
    return Digits(width, dropout)
