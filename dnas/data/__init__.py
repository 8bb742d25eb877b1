"""Data sets: loading, division into the four splits of a search, and batches."""

from dnas.data.batches import Batches, batches
from dnas.data.config import DataConfig
from dnas.data.load import load_data
from dnas.data.types import Data, DataError, Split, digests

__all__ = ["Batches", "Data", "DataConfig", "DataError", "Split", "batches", "digests", "load_data"]
