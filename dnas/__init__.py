"""dnas: learn how many bits and filters a PyTorch network needs, under a hard complexity budget."""

from dnas.describe import Description, describe
from dnas.models.checkpoint import load_weights
from dnas.realise import realise
from dnas.retrain import RetrainConfig, retrain
from dnas.search.budget import Budget
from dnas.search.relax import Relaxation
from dnas.search.scores import Scores
from dnas.search.supernet import Supernet
from dnas.search.training import SearchConfig
from dnas.searcher import search
from dnas.select.reference import random_architecture, uniform_architecture
from dnas.select.select import select
from dnas.space.architecture import Architecture
from dnas.space.build import build_space
from dnas.space.choice import Space
from dnas.space.energy import EnergyConfig
from dnas.space.target import Target
from dnas.stages.context import load
from quant.export import export
from quant.verify import verify

__all__ = [
    "Architecture",
    "Budget",
    "Description",
    "EnergyConfig",
    "Relaxation",
    "RetrainConfig",
    "Scores",
    "SearchConfig",
    "Space",
    "Supernet",
    "Target",
    "build_space",
    "describe",
    "export",
    "load",
    "load_weights",
    "random_architecture",
    "realise",
    "retrain",
    "search",
    "select",
    "uniform_architecture",
    "verify",
]
