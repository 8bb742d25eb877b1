"""Batch norms by the statistics of the batch at hand, as in training, where all else evaluates."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn


@contextmanager
def batch_statistics(model: nn.Module, which: Callable[[Any], bool] = lambda norm: True) -> Iterator[None]:
    """Batch norms, or those that `which` holds for, normalise by the batch at hand; all else evaluates.

    Running statistics stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    norms = [norm for norm in norms if which(norm)]
    running = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    model.eval()
    for norm in norms:
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (mean, variance, tracked) in zip(norms, running, strict=True):
            norm.track_running_stats = True
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, tracked
        for module, mode in modes:
            module.training = mode


def centred(model: nn.Module, batch: int) -> AbstractContextManager[None]:
    """Batch norms that have seen nothing yet take the statistics of the batch at hand, if that is of several examples.

    By their initial ones activations would fade or grow from layer to layer, and keep one sign, as they do not in training.
    """
    return batch_statistics(model, _is_initial if batch > 1 else lambda norm: False)


def _is_initial(norm: Any) -> bool:
    """Whether a batch norm's running statistics are those that it was made with."""
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())
