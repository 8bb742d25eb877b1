"""The estimator as BINAS constructs it: one conditional mean per option, nothing fitted (Nayman et al. 2022).

ACC = E[Acc] + sum_s (E[Acc | d_s] - E[Acc]) + sum over the blocks b that run of (E[Acc | c_b, d_s = b] - E[Acc | d_s = b]).
"""

import numpy as np

from dnas.search.pool import Pool
from dnas.search.scores import Scores, nested
from dnas.space.choice import Space


def conditional_means(space: Space, pool: Pool) -> tuple[float, Scores]:
    """The classical construction from the records of a pool.

    Args:
        space: the space.
        pool: its records; an option that none of them has where its block is the last one counts nothing.

    Returns:
        (mean accuracy, scores that add to it).
    """
    column = {name: i for i, name in enumerate(pool.choices)}
    gates = space.gates_by_choice()
    mean = float(pool.accuracy.mean())
    values: dict[str, tuple[float, ...]] = {choice.name: (0.0,) * len(choice.options) for choice in space.choices}
    joint = []
    for choice in space.searched():
        own = gates.get(choice.name, ())
        last = np.ones(len(pool), dtype=bool)
        for name, least in own:
            last &= pool.positions[:, column[name]] == least
        base = float(pool.accuracy[last].mean()) if last.any() else mean
        table = np.zeros(len(choice.options))
        for option in range(len(table)):
            rows = last & (pool.positions[:, column[choice.name]] == option)
            table[option] = float(pool.accuracy[rows].mean()) - base if rows.any() else 0.0
        if not own:
            values[choice.name] = tuple(table.tolist())
            continue
        names = (choice.name, *dict.fromkeys(name for name, _ in own))
        for name in names[1:]:
            least = max(least for gate, least in own if gate == name)
            table = table[..., None] * (np.arange(len(space.choice(name).options)) >= least)
        joint.append((names, nested(table.tolist())))
    return mean, Scores(values, "conditional means", tuple(joint))
