"""Datasets of HDF5 shards: build them, and read any samples of them at the speed of memory."""

from hpcvol.data.build import build_dataset
from hpcvol.data.dataset import Dataset, Split
from hpcvol.data.manifest import Field
from hpcvol.data.mixing import mix
from hpcvol.data.order import order

__all__ = ["Dataset", "Field", "Split", "build_dataset", "mix", "order"]
