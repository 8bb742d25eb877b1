"""dnas: learn how many bits and filters a PyTorch network needs, under a hard complexity budget."""

from dnas.realise import realise
from dnas.search.budget import Budget
from dnas.search.supernet import Supernet
from dnas.select.reference import random_architecture, uniform_architecture
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from quant.export import export

__all__ = [
    "Architecture",
    "Budget",
    "Supernet",
    "build_space",
    "export",
    "random_architecture",
    "realise",
    "select",
    "uniform_architecture",
]
