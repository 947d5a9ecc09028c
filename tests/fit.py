"""How well observed counts fit a distribution."""

import torch


def chi_square(observed, expected):
    """p-value of counts [n] under probabilities [n]; a count where the probability is 0 gives 0."""
    observed, expected = observed.double(), expected.double() * observed.sum()
    if (observed[expected == 0] > 0).any():
        return 0.0
    observed, expected = observed[expected > 0], expected[expected > 0]
    order = expected.argsort()
    rare = order[expected[order].cumsum(0) < 5]
    if len(rare):
        pool = [rare, order[len(rare) : len(rare) + 1]]
        pooled = torch.cat(pool)
        keep = torch.ones_like(expected, dtype=torch.bool)
        keep[pooled] = False
        observed = torch.cat([observed[keep], observed[pooled].sum()[None]])
        expected = torch.cat([expected[keep], expected[pooled].sum()[None]])
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), statistic / 2)
    )
