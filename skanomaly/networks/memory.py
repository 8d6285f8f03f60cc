"""Memories, which replace features by combinations of a few: learned items, or queues of past features."""

import torch
from torch import nn
from torch.nn import functional as F


def hard_shrinkage(weights, threshold):
    """Weights up to the threshold become 0, and the others sum to 1 again (Gong et al. 2019, equation 7)."""
    excess = weights - threshold
    return F.normalize(F.relu(excess) * weights / (excess.abs() + 1e-12), p=1, dim=-1)


def gumbel_shrinkage(weights, k):
    """The k largest weights, which sum to 1 again; the gradient is that of all weights (Xiang et al. 2023).

    There is no noise in it. Of equal weights some are kept, so that there are always k.
    """
    largest, where = weights.topk(k, dim=-1)
    kept = torch.zeros_like(weights).scatter(-1, where, largest)
    return (F.normalize(kept, p=1, dim=-1) - weights).detach() + weights


def similarity(query, items, *, cosine):
    """Dot products (..., n, d) x (..., m, d) -> (..., n, m); of unit vectors for `cosine`."""
    if cosine:
        query, items = F.normalize(query, dim=-1), F.normalize(items, dim=-1)
    return query @ items.transpose(-1, -2)


class MemoryMatrix(nn.Module):
    """Learned items; a feature becomes their combination (MemAE).

    Parameters
    ----------
    n_slots : int
        Items.
    size : int
        Numbers in one.
    threshold : float
        Of `hard_shrinkage`; 0 leaves all weights.
    cosine : bool
        Whether similarity is that of directions.
    """

    def __init__(self, n_slots, size, *, threshold, cosine=False):
        super().__init__()
        self.items = nn.Parameter(torch.empty(n_slots, size).uniform_(-1, 1) / size**0.5)
        self.threshold, self.cosine = threshold, cosine

    def forward(self, z):
        """Features (n, d) or (n, d, h, w), each place by itself, and the weights (..., n_slots)."""
        query = z.movedim(1, -1)
        weights = similarity(query, self.items, cosine=self.cosine).softmax(-1)
        weights = hard_shrinkage(weights, self.threshold)
        return (weights @ self.items).movedim(-1, 1), weights


class MemoryQueue(nn.Module):
    """The last features of each location, first in first out (SQUID): not learned, but written.

    Parameters
    ----------
    n_locations : int
        Queues side by side.
    n_slots : int
        Features each holds.
    size : int
        Numbers in one.
    shrink : callable
        From weights (..., n_slots), which sum to 1, to those used.
    cosine : bool, default=False
        Whether similarity is that of directions.
    learned : bool, default=False
        Items are parameters instead, and nothing is written: a matrix for each location.
    """

    def __init__(self, n_locations, n_slots, size, *, shrink, cosine=False, learned=False):
        super().__init__()
        start = torch.empty(n_locations, n_slots, size).uniform_(-1, 1) / size**0.5
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        if learned:
            self.items = nn.Parameter(start)
        else:
            self.register_buffer("items", start)
        self.shrink, self.cosine, self.learned = shrink, cosine, learned

    def weights(self, query):
        """Of the stored features (n_locations, n, n_slots), for queries (n, n_locations, size)."""
        return self.shrink(similarity(query.transpose(0, 1), self.items, cosine=self.cosine).softmax(-1))

    def forward(self, query):
        """Combinations of stored features (n, n_locations, size), each location from its own queue."""
        return (self.weights(query) @ self.items).transpose(0, 1)

    @torch.no_grad()
    def write(self, features):
        """Features (n, n_locations, size) take the place of the oldest."""
        if self.learned:
            return
        n_slots = self.items.shape[1]
        kept = features[-n_slots:].transpose(0, 1)
        start = self.pointer + len(features) - kept.shape[1]
        places = (start + torch.arange(kept.shape[1], device=kept.device)) % n_slots
        self.items[:, places] = kept.to(self.items)
        self.pointer.copy_((self.pointer + len(features)) % n_slots)
