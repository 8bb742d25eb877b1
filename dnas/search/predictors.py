"""Other predictors of one-shot accuracy, beside BINAS' estimator.

`conditional means`: the paper's construction, with nothing fitted. `linear`: ridge on one effect per option. `bilinear`:
closed-form ridge on these and on the products of a block's options with the depth of its stage, as the paper's form has them.
`quadratic`: closed-form ridge on all products of two options, anywhere in the network. `trees`: gradient-boosted trees on the
options' positions. `network`: a small multilayer perceptron.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dnas.search.classical import conditional_means
from dnas.search.pool import Pool
from dnas.space.choice import Space

Predictor = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""From positions, shape (n, choices), to accuracies, shape (n,)."""
PREDICTORS = ("conditional means", "linear", "bilinear", "quadratic", "trees", "network")


def fit_predictor(name: str, space: Space, pool: Pool) -> Predictor:
    """Fits one of `PREDICTORS` to a pool; batches of images differ in difficulty, which is taken out first.

    Args:
        name: which one.
        space: without choices by filter.
        pool: its records.

    Raises:
        ValueError: an unknown name.
    """
    widths = [len(choice.options) for choice in space.choices]

    def coded(positions: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.concatenate([np.eye(width)[positions[:, i]] for i, width in enumerate(widths) if width > 1], 1)

    gates, column = space.gates_by_choice(), {choice.name: i for i, choice in enumerate(space.choices)}

    def by_depth(positions: NDArray[np.int64]) -> NDArray[np.float64]:
        products = []
        for choice in space.searched():
            own = np.eye(len(choice.options))[positions[:, column[choice.name]]]
            for gate in dict.fromkeys(name for name, _ in gates.get(choice.name, ())):
                depth = np.eye(len(space.choice(gate).options))[positions[:, column[gate]]]
                products.append((own[:, :, None] * depth[:, None, :]).reshape(len(positions), -1))
        return np.concatenate([coded(positions), *products], 1)

    means = np.array([pool.accuracy[pool.batch == batch].mean() for batch in range(int(pool.batch.max()) + 1)])
    y, mean = pool.accuracy - means[pool.batch], float(pool.accuracy.mean())
    strengths = np.logspace(-2, 4, 13)
    encode = coded
    if name == "conditional means":
        mean, scores = conditional_means(space, replace(pool, accuracy=y + mean))
        return lambda positions: mean + scores.of(space, positions)
    if name in ("linear", "bilinear"):
        model = RidgeCV(alphas=strengths)
        if name == "bilinear":
            encode = by_depth
    elif name == "quadratic":
        grid = {"alpha": strengths.tolist(), "coef0": [1.0, 10.0, 100.0]}
        model = GridSearchCV(KernelRidge(kernel="poly", degree=2, gamma=1.0), grid, cv=5)
    elif name == "trees":
        model = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.05, min_samples_leaf=10, random_state=0)
        encode = np.asarray  # type: ignore[assignment]
    elif name == "network":
        network = MLPRegressor(
            hidden_layer_sizes=(64, 64), alpha=1.0, max_iter=2000, early_stopping=True, random_state=0
        )
        model = make_pipeline(StandardScaler(), network)
    else:
        raise ValueError(f"unknown predictor {name!r}; allowed: {list(PREDICTORS)}")
    model.fit(encode(pool.positions), y)
    return lambda positions: mean + np.asarray(model.predict(encode(positions)), dtype=float)
