"""Memories, each against an independent computation."""

from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from skanomaly._random import seeded
from skanomaly.networks.memory import MemoryMatrix, MemoryQueue, gumbel_shrinkage, hard_shrinkage


def plain(weights):
    return weights


def weights_of(n=6, m=10, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, m))).softmax(-1)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.12])
def test_hard_shrinkage(threshold):
    weights = weights_of()
    found = hard_shrinkage(weights, threshold)
    assert ((found > 0) == (weights > threshold)).all()
    kept = np.where(weights > threshold, weights, 0)
    assert_close(found, torch.from_numpy(kept / kept.sum(-1, keepdims=True)))
    assert_close(found.sum(-1), torch.ones(len(found), dtype=found.dtype))
    assert not hard_shrinkage(weights, 0.999).any(), "nothing above it: a code of zeros"
    assert_close(hard_shrinkage(torch.tensor([0.25, 0.25, 0.5]), 0.25), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("k", [1, 4, 10])
def test_gumbel_shrinkage_keeps_k_and_has_the_gradient_of_all(k):
    logits = torch.randn(5, 10, dtype=torch.float64, generator=torch.manual_seed(0), requires_grad=True)
    values = torch.randn(10, dtype=torch.float64, generator=torch.manual_seed(1))
    found = gumbel_shrinkage(logits.softmax(-1), k)
    plain = logits.detach().softmax(-1).numpy()
    expected = np.where(np.argsort(np.argsort(-plain)) < k, plain, 0)
    assert_close(found.detach(), torch.from_numpy(expected / expected.sum(-1, keepdims=True)))
    (gradient,) = torch.autograd.grad((found @ values).sum(), logits)
    p = torch.from_numpy(plain)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert_close(gradient, jacobian @ values)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 7))
def test_a_queue_holds_the_last_features_in_their_order(batches, n_slots):
    queue, expected = MemoryQueue(3, n_slots, 4, shrink=plain), deque(maxlen=n_slots)
    start = queue.items.clone()
    for n in batches:
        features = torch.randn(n, 3, 4)
        queue.write(features)
        expected.extend(features)
    n_written = sum(batches)
    assert queue.pointer == n_written % n_slots
    in_order = torch.roll(queue.items, -int(queue.pointer), 1).transpose(0, 1)
    assert_close(in_order[n_slots - len(expected) :], torch.stack(list(expected)))
    if n_written < n_slots:
        assert_close(queue.items[:, n_written:], start[:, n_written:])


def test_retrieval_from_a_queue():
    with seeded(0):
        queue, query = MemoryQueue(2, 5, 8, shrink=partial(gumbel_shrinkage, k=5)), torch.randn(3, 2, 8)
    for location in range(2):
        weights = (query[:, location] @ queue.items[location].T).softmax(-1)
        assert_close(queue(query)[:, location], weights @ queue.items[location], msg="all slots: softmax")
    queue.shrink = partial(gumbel_shrinkage, k=1)
    queue.write(20 * torch.eye(8)[:4].reshape(2, 2, 8).repeat(3, 1, 1)[:5])
    assert_close(queue(20 * torch.eye(8)[None, [2, 3]]), 20 * torch.eye(8)[None, [2, 3]])
    assert not torch.equal(queue(20 * torch.eye(8)[None, [3, 2]]), 20 * torch.eye(8)[None, [3, 2]]), (
        "each location has its own"
    )
    queue = MemoryQueue(2, 5, 8, shrink=plain, cosine=True)
    for location in range(2):
        a, b = F.normalize(query[:, location], dim=1), F.normalize(queue.items[location], dim=1)
        assert_close(queue(query)[:, location], (a @ b.T).softmax(-1) @ queue.items[location])
    assert_close(queue(7 * query), queue(query), msg="its direction alone")


def test_a_queue_is_restored():
    queue = MemoryQueue(2, 5, 8, shrink=plain)
    assert 0 < queue.items.abs().max() <= 8**-0.5, "noise to begin with"
    queue.write(torch.randn(7, 2, 8))
    copy = MemoryQueue(2, 5, 8, shrink=plain)
    copy.load_state_dict(queue.state_dict())
    assert copy.pointer == queue.pointer == 2
    assert torch.equal(copy.items, queue.items)
    assert not any(True for _ in queue.parameters()), "nothing to learn"


@pytest.mark.parametrize("cosine", [False, True])
def test_a_learned_memory(cosine):
    with seeded(0):
        memory = MemoryMatrix(6, 4, threshold=0.0, cosine=cosine)
        z = torch.randn(3, 4)
        maps = torch.randn(2, 4, 5, 7)
    a, b = (F.normalize(z, dim=1), F.normalize(memory.items, dim=1)) if cosine else (z, memory.items)
    weights = (a @ b.T).softmax(-1)
    found, address = memory(z)
    assert_close(address, weights)
    assert_close(found, weights @ memory.items)
    spatial, addresses = memory(maps)
    assert (spatial.shape, addresses.shape) == (maps.shape, (2, 5, 7, 6))
    assert_close(spatial[1, :, 2, 3], memory(maps[1:, :, 2, 3])[0][0])
    single = MemoryMatrix(1, 4, threshold=0.0)
    assert_close(single(z)[0], single.items.expand(3, 4))


def test_learned_items_are_not_written():
    memory = MemoryQueue(2, 5, 8, shrink=plain, learned=True)
    start = memory.items.detach().clone()
    memory.write(torch.randn(3, 2, 8))
    assert torch.equal(memory.items, start)
    assert memory.items.requires_grad
