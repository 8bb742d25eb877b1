"""The score-function estimator (REINFORCE) of the choices' gradient, as Zur's thesis has it, with a baseline that it lacked.

The gradient of E[L] in the logits is E[(L - b) d log p]: only losses are needed, no path through the network. Its
deviation is the estimator's whole problem; the mean of the *other* samples' losses as b (leave-one-out: Kool et al. 2019)
keeps it unbiased.
"""

import torch
from torch import Tensor

BASELINES = ("leave_one_out", "none")


def score_function(losses: Tensor, log_probabilities: Tensor, baseline: str = "leave_one_out") -> Tensor:
    """A scalar whose gradient estimates that of the expected loss.

    Args:
        losses: of S sampled architectures on the same images, shape (S,); no gradient passes through them.
        log_probabilities: of the same architectures, shape (S,), differentiable in the logits.
        baseline: `leave_one_out` (S >= 2) or `none`.

    Returns:
        shape ().

    Raises:
        ValueError: an unknown baseline, or too few samples for it.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}; allowed: {list(BASELINES)}")
    losses = losses.detach()
    count = len(losses)
    if baseline == "leave_one_out":
        if count < 2:
            raise ValueError(f"leave_one_out needs at least 2 samples; found {count}")
        losses = losses - (losses.sum() - losses) / (count - 1)
    return torch.mean(losses * log_probabilities)
