"""A bank of remembered features, and the selection of those that are worth remembering."""

import torch
from torch import nn

#: Most features of the bank to which distances are computed at a time. All at once might fill the memory.
CHUNK = 4096
#: Most vectors whose distances are computed at a time: a table of the size of the processor's cache is quick.
BLOCK = 512
#: Dimensions of the random projection in which features are selected (Sinha et al. 2020).
N_PROJECTED = 64


def coreset(x, n):
    """Rows of `n` features, selected greedily: each is the one farthest from those selected before.

    The farthest distance of any feature from a selected one is at most twice the least that `n` features can
    reach (Gonzalez 1985), but for the random projection.

    Parameters
    ----------
    x : (m, d) tensor
    n : int

    Returns
    -------
    rows : (n,) int64 tensor
    """
    if x.shape[1] > N_PROJECTED:
        # Distances hardly change (Johnson and Lindenstrauss 1984), and take less time.
        x = x @ (torch.randn(x.shape[1], N_PROJECTED) / N_PROJECTED**0.5).to(x)
    lengths = x.square().sum(1)
    rows = torch.empty(n, dtype=torch.int64, device=x.device)
    rows[0] = torch.randint(len(x), ())
    nearest = torch.full_like(lengths, torch.inf)
    for k in range(n):
        if k:
            rows[k] = nearest.argmax()
        row = rows[k]
        nearest = torch.minimum(nearest, lengths - 2 * (x @ x[row]) + lengths[row])
        nearest[row] = -torch.inf  # equal features would be selected again
    return rows


class FeatureBank(nn.Module):
    """Bank of features, with the positions and the images that they come from.

    Parameters
    ----------
    n : int
        Number of features.
    n_features : int
        Length of each.
    """

    def __init__(self, n, n_features):
        super().__init__()
        self.register_buffer("features", torch.zeros(n, n_features))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("deviation", torch.ones(n_features))
        self.register_buffer("places", torch.zeros(n, 2))
        # Only the fit asks for the images.
        self.register_buffer("images", torch.zeros(n, dtype=torch.int64), persistent=False)

    def scaled(self, x):
        """Features (m, d) of a network in units of their deviations from the mean, as the bank holds them."""
        # The mean changes no distance, but products of large numbers would cancel.
        return (x - self.mean) / self.deviation

    def nearest(self, x, k, counts=None):
        """Distances (m, k) of vectors (m, d) to their nearest features, and the numbers of these features.

        Parameters
        ----------
        x : (m, d) tensor
        k : int
        counts : callable (slice) -> (m, b) bool tensor, default=None
            Function that says which of the features in a slice count for each vector. For a vector for which
            none does, all count.
        """
        squares, rows = self._search(x, k, counts)
        if counts is not None and (alone := squares[:, :1].isinf()).any():
            # For all vectors, since results depend on how many there are.
            squares, rows = map(torch.where, (alone, alone), self._search(x, k), (squares, rows))
        # Where fewer than k count, the nearest stands for the others.
        rows = torch.where(squares.isinf(), rows[:, :1], rows)
        # From differences: the products of `_search` cancel where a feature is close.
        distances = [(x - self.features[column]).square().sum(1).sqrt() for column in rows.mT]
        return torch.stack(distances, dim=1), rows

    def _search(self, x, k, counts=None):
        """Approximate squared distances (m, k), inf for features that do not count, and their numbers."""
        n, lengths, best = len(self.features), x.square().sum(1, keepdim=True), None
        for start in range(0, n, CHUNK):
            part = slice(start, min(start + CHUNK, n))
            features = self.features[part]
            squared, counted, found = features.square().sum(1), None if counts is None else counts(part), []
            for first in range(0, len(x), BLOCK):
                block = slice(first, first + BLOCK)
                squares = torch.addmm(squared, x[block], features.mT, alpha=-2).add_(lengths[block])
                if counted is not None:
                    squares.masked_fill_(~counted[block], torch.inf)
                found.append(_least(squares, min(k, n)))
            values, rows = (torch.cat(of) for of in zip(*found))
            rows += start
            if best is not None:
                values, rows = (torch.cat(pair, 1) for pair in zip(best, (values, rows)))
                values, order = _least(values, min(k, n))
                rows = rows.gather(1, order)
            best = values, rows
        return best


def _least(values, k):
    """The k least values of each row, or all, and their columns."""
    if k == 1:
        return values.min(1, keepdim=True)  # topk takes twice the time
    return values.topk(min(k, values.shape[1]), largest=False)
