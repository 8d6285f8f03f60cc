"""Memories, which replace a feature by a combination of stored ones: learned items, or past features."""

import torch
from torch import nn
from torch.nn import functional as F


def hard_shrinkage(weights, threshold):
    """Weights of which those up to the threshold are 0 and the others sum to 1 (Gong et al. 2019)."""
    # Written as in equation 7; torch.where would give other last bits.
    excess = weights - threshold
    return F.normalize(F.relu(excess) * weights / (excess.abs() + 1e-12), p=1, dim=-1)


def gumbel_shrinkage(weights, k):
    """The k largest weights, which sum to 1 again; the gradient is that of all weights (Xiang et al. 2023).

    No noise is drawn, in spite of the name. Exactly k weights are kept, also where some are equal.
    """
    # topk, not a threshold at the k-th weight: the public code keeps only the k - 1 above it, none for k = 1.
    largest, where = weights.topk(k, dim=-1)
    kept = torch.zeros_like(weights).scatter(-1, where, largest)
    return (F.normalize(kept, p=1, dim=-1) - weights).detach() + weights


def similarity(query, items, *, cosine):
    """Dot products of queries (..., n, d) with items (..., m, d), or their cosines: (..., n, m)."""
    if cosine:
        query, items = F.normalize(query, dim=-1), F.normalize(items, dim=-1)
    return query @ items.transpose(-1, -2)


class MemoryMatrix(nn.Module):
    """Memory of learned items (MemAE): a feature becomes a combination of them.

    Parameters
    ----------
    n_slots : int
        Number of items.
    size : int
        Length of an item, and of a feature.
    threshold : float
        Threshold of `hard_shrinkage`; 0 keeps all weights.
    cosine : bool, default=False
        Whether features and items are compared by their cosine; else by their dot product.
    """

    def __init__(self, n_slots, size, *, threshold, cosine=False):
        super().__init__()
        self.items = nn.Parameter(torch.empty(n_slots, size).uniform_(-1, 1) / size**0.5)
        self.threshold, self.cosine = threshold, cosine

    def forward(self, z):
        """Combinations for features (n, d), or (n, d, h, w) place by place; and weights (..., n_slots)."""
        query = z.movedim(1, -1)
        weights = similarity(query, self.items, cosine=self.cosine).softmax(-1)
        weights = hard_shrinkage(weights, self.threshold)
        return (weights @ self.items).movedim(-1, 1), weights


class MemoryQueue(nn.Module):
    """Memory of the latest features of each location, first in first out (SQUID).

    Parameters
    ----------
    n_locations : int
        Number of queues, one for each location.
    n_slots : int
        Number of features in a queue.
    size : int
        Length of a feature.
    shrink : callable (weights) -> weights
        Function that drops small weights (..., n_slots), for example `gumbel_shrinkage` with some k.
    cosine : bool, default=False
        Whether features are compared by their cosine; else by their dot product.
    learned : bool, default=False
        Whether the items are parameters, learned by gradient; `write` then does nothing.
    """

    def __init__(self, n_locations, n_slots, size, *, shrink, cosine=False, learned=False):
        super().__init__()
        start = torch.empty(n_locations, n_slots, size).uniform_(-1, 1) / size**0.5
        # A buffer, so that it is saved with the items; the public code loses its place in the queue.
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        if learned:
            self.items = nn.Parameter(start)
        else:
            self.register_buffer("items", start)
        self.shrink, self.cosine, self.learned = shrink, cosine, learned

    def weights(self, query):
        """Weights of the stored features (n_locations, n, n_slots), for queries (n, n_locations, size)."""
        return self.shrink(similarity(query.transpose(0, 1), self.items, cosine=self.cosine).softmax(-1))

    def forward(self, query):
        """Combinations of stored features (n, n_locations, size), from the queue of each location."""
        return (self.weights(query) @ self.items).transpose(0, 1)

    @torch.no_grad()
    def write(self, features):
        """Replace the oldest features by new ones (n, n_locations, size)."""
        if self.learned:
            return
        n_slots = self.items.shape[1]
        # A batch may be longer than the queue: its end stays, in the slots it would have reached one by one.
        kept = features[-n_slots:].transpose(0, 1)
        start = self.pointer + len(features) - kept.shape[1]
        places = (start + torch.arange(kept.shape[1], device=kept.device)) % n_slots
        self.items[:, places] = kept.to(self.items)
        self.pointer.copy_((self.pointer + len(features)) % n_slots)
