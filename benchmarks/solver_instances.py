"""Synthetic selection problems: chains of layers with widths and bits, rank-one costs, noisy sensitivities.

As in section 7.3 of the measurements that the solvers are compared by: log-normal sensitivities per layer, 15 % noise on every
entry, limits at a share of the range between the cheapest and the dearest network.
"""

import numpy as np

from dnas.select.problem import Problem, Row, Table

BITS = (2, 3, 4, 6, 8)
WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def chain(
    layers: int, widths: int, pairs: int, seed: int, share: float = 0.1, resources: int = 1, neighbours: bool = False
) -> Problem:
    """A chain whose layers take one of widths * pairs joint options: filters, and a pair of weight and activation bits.

    Args:
        layers: how many.
        widths: filter counts per layer.
        pairs: (weight bits, activation bits) pairs per layer.
        seed: of sensitivities and noise.
        share: of the range of every resource that its limit allows.
        resources: bit operations; then weight bits; then activation bits.
        neighbours: random values for the filters of layers that follow each other.
    """
    generator = np.random.default_rng(seed)
    shares = np.array(sorted(WIDTHS[::-1][:widths]))
    every = [(w, a) for w in BITS for a in BITS]
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, pairs).astype(int)]
    sizes: dict[str, int] = {}
    values: list[Table] = []
    tables: list[list[Table]] = [[], [], []]
    channels = 32 * 2 ** (4 * np.arange(layers) // max(layers, 1))
    pixels = (32 // 2 ** (4 * np.arange(layers) // max(layers, 1))) ** 2
    for i in range(layers):
        sizes[f"f{i}"], sizes[f"b{i}"] = widths, pairs
        sensitivity = np.exp(generator.normal(0, 0.7))
        loss_f = sensitivity * 0.3 * (1 / shares - 1)
        loss_b = sensitivity * np.array([4.0**-w + 4.0**-a for w, a in chosen]) * 4
        values.append(((f"f{i}",), -loss_f * generator.normal(1, 0.15, widths)))
        values.append(((f"b{i}",), -loss_b * generator.normal(1, 0.15, pairs)))
        outs = channels[i] * shares
        bits, weights = np.array([w * a for w, a in chosen], dtype=float), np.array([w for w, _ in chosen], dtype=float)
        acts = np.array([a for _, a in chosen], dtype=float)
        if i == 0:
            tables[0].append(((f"f{i}", f"b{i}"), np.floor(9 * pixels[i] * 3 * outs[:, None] * bits)))
            tables[1].append(((f"f{i}", f"b{i}"), np.floor(9 * 3 * outs[:, None] * weights)))
        else:
            ins = channels[i - 1] * shares
            names = (f"f{i - 1}", f"f{i}", f"b{i}")
            both = ins[:, None, None] * outs[None, :, None]
            tables[0].append((names, np.floor(9 * pixels[i] * both * bits)))
            tables[1].append((names, np.floor(9 * both * weights)))
            if neighbours:
                values.append(((f"f{i - 1}", f"f{i}"), generator.normal(0, 0.05, (widths, widths))))
        tables[2].append(((f"f{i}", f"b{i}"), np.floor(pixels[i] * outs[:, None] * acts)))
    rows = []
    for own in tables[:resources]:
        low, high = sum(float(t.min()) for _, t in own), sum(float(t.max()) for _, t in own)
        rows.append(Row(tuple(own), low + share * (high - low)))
    return Problem(sizes, tuple(values), 0.0, tuple(rows))
