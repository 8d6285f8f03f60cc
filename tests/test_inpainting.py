"""SQUID's network, part by part, against independent computations."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from skanomaly._random import seeded
from skanomaly.networks.inpainting import (
    BatchOrImageNorm,
    ImageDiscriminator,
    InPainting,
    InPaintingNetwork,
    PartMemory,
    WindowEncoder,
    to_images,
    to_windows,
)
from skanomaly.networks.memory import MemoryQueue


def plain(weights):
    return weights


def inpainting(grid, *, padded=False, shape=(32, 2, 2)):
    with seeded(0):
        return InPainting(
            shape,
            grid,
            make_memory=lambda size: MemoryQueue(grid[0] * grid[1], 6, size, shrink=plain),
            padded=padded,
        )


def network(image_shape=(1, 16, 16), n_windows=2, **options):
    options = {
        "make_encoder": None,
        "make_memory": partial(MemoryQueue, n_windows**2, 6, shrink=plain),
        "padded": False,
        "rho": 0.95,
        "width": 2,
        "n_levels": None,
        "n_memories": 0,
        "skips": (),
        "stitch_level": 1,
    } | options
    with seeded(0):
        return InPaintingNetwork(image_shape, n_windows, **options)


def test_windows_and_back():
    x = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)
    windows = to_windows(x, (2, 4))
    assert windows.shape == (16, 3, 3, 2)
    assert torch.equal(windows[8 + 4 + 2], x[1, :, 3:6, 4:6]), "by image, row and column"
    assert torch.equal(to_images(windows, (2, 4)), x)


def attention_by_hand(net, vectors, retrieved, grid, padded):
    """Each location by itself, with the keys it has, in nested loops."""
    attention = net.attention
    size, n_heads = vectors.shape[2], attention.num_heads
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    rows, columns = grid
    out = torch.empty_like(vectors)
    for i, feature in enumerate(vectors):
        for row in range(rows):
            for column in range(columns):
                keys = []
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        inside = 0 <= row + a < rows and 0 <= column + b < columns
                        if (a, b) == (0, 0) or not (inside or padded):
                            continue
                        at = (row + a) * columns + column + b
                        keys.append(retrieved[i, at] if inside else torch.zeros(size))
                keys = torch.stack(keys)
                q = (wq @ feature[row * columns + column] + bq).reshape(n_heads, 1, -1)
                k, v = keys @ wk.T + bk, keys @ wv.T + bv
                k, v = (part.reshape(len(keys), n_heads, -1).swapaxes(0, 1) for part in (k, v))
                weights = (q @ k.swapaxes(1, 2) / k.shape[2] ** 0.5).softmax(-1)
                joined = (weights @ v)[:, 0].flatten()
                out[i, row * columns + column] = attention.out_proj(joined)
    return out


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (1, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_locations_attend_to_their_neighbours(grid, padded):
    net = inpainting(grid, padded=padded)
    size = net.attention.embed_dim
    with seeded(1), torch.no_grad():
        for bias in net.attention.in_proj_bias, net.attention.out_proj.bias:
            bias.normal_()
        vectors, retrieved = torch.randn(2, 2, grid[0] * grid[1], size)
        expected = attention_by_hand(net, vectors, retrieved, grid, padded)
        assert_close(net.attend(vectors, retrieved), expected, atol=1e-5, rtol=1e-4)


def test_a_single_window_has_no_neighbours():
    net = inpainting((1, 1))
    with torch.no_grad():
        assert torch.isfinite(net.attend(torch.randn(2, 1, 32), torch.randn(2, 1, 32))).all()


def test_locations_are_numbered():
    for grid, bits in (((1, 1), 1), ((2, 2), 3), ((3, 3), 4)):
        codes = inpainting(grid).codes
        assert codes.shape == (grid[0] * grid[1], bits)
        assert len(codes.unique(dim=0)) == len(codes)
        assert set(codes.unique().tolist()) <= {0, 1}


def test_what_is_painted_comes_from_the_memory():
    net = inpainting((2, 2)).eval()
    with seeded(0), torch.no_grad():
        features = torch.randn(12, 32, 2, 2)
        painted, vectors, retrieved = net(features)
        assert painted.shape == features.shape
        assert (vectors.shape, retrieved.shape) == ((3, 4, 32), (3, 4, 32))
        assert_close(retrieved, net.memory(vectors))
        assert_close(vectors[1, 2], net.squeeze(features)[4 + 2].flatten())
        h = torch.relu(net.norms[0](net.attend(vectors, retrieved)) + retrieved)
        h = torch.relu(net.norms[1](net.feed_forward(h)) + h).reshape(12, 8, 2, 2)
        codes = net.codes.repeat(3, 1)[:, :, None, None].expand(12, 3, 2, 2)
        assert_close(painted, net.widen(torch.cat([h, codes], dim=1)))


def test_the_masked_shortcut():
    net = network().train()
    x = torch.rand(8, 1, 16, 16)
    levels = net.encode(x)
    with torch.no_grad():
        for rho, share in ((0.0, 0.0), (1.0, 1.0), (0.7, 0.7)):
            net.rho = rho
            net.inpainting.eval()
            painted = net.inpainting(levels[-1])[0]
            levels_after, _, _ = net.paint(levels)
            assert all(a is b for a, b in zip(levels[:-1], levels_after))
            kept = (levels_after[-1] == levels[-1]).all(1)
            new = (levels_after[-1] == painted).all(1)
            assert (kept | new).all(), "each place is one or the other, in all channels"
            assert abs(new.float().mean() - share) < 0.12
        net.rho = 0.0
        assert torch.equal(net.eval().paint(levels)[0][-1], painted), "all is painted where it judges"


def parts_by_hand(block, x):
    """Each part by itself; sides that cannot be cut into equal parts repeat their last row or column."""
    rows, columns = block.grid
    height, width = (-(-side // n) for side, n in zip(x.shape[2:], block.grid))
    down = torch.arange(rows * height).clamp(max=x.shape[2] - 1)
    across = torch.arange(columns * width).clamp(max=x.shape[3] - 1)
    given, found = x[:, :, down][..., across], torch.empty(len(x), x.shape[1], len(down), len(across))
    for i in range(len(x)):
        for row in range(rows):
            for column in range(columns):
                at = i, slice(None), slice(row * height, (row + 1) * height)
                at = *at, slice(column * width, (column + 1) * width)
                items = block.memory.items[row * columns + column]
                weights = (items @ given[at].flatten()).softmax(0)
                found[at] = (weights @ items).reshape(found[at].shape)
    return found[..., : x.shape[2], : x.shape[3]]


SMALL = st.integers(1, 3)


@given(SMALL, SMALL, st.integers(1, 7), st.integers(1, 7), st.tuples(SMALL, SMALL))
def test_parts_are_replaced_by_items_of_their_places(n, channels, height, width, grid):
    with seeded(0), torch.no_grad():
        make_memory = partial(MemoryQueue, grid[0] * grid[1], 5, shrink=plain, learned=True)
        block = PartMemory((channels, height, width), grid, make_memory=make_memory, rho=0.5).eval()
        x = torch.randn(n, channels, height, width)
        expected = parts_by_hand(block, x)
        assert_close(block(x), expected, atol=1e-5, rtol=1e-4)
        y = block.train()(x)
        kept = (y == x).all(1, keepdim=True)
        assert_close(y, torch.where(kept, x, expected), atol=1e-5, rtol=1e-4)


def test_some_places_of_parts_are_kept_in_training():
    make_memory = partial(MemoryQueue, 4, 5, shrink=plain, learned=True)
    with seeded(0), torch.no_grad():
        x = torch.randn(4, 3, 32, 32)
        block = PartMemory((3, 32, 32), (2, 2), make_memory=make_memory, rho=0.7)
        kept = (block.train()(x) == x).all(1).float()
    assert abs(kept.mean() - 0.3) < 0.03


def test_nothing_but_items_passes_a_memory_of_parts():
    """Also where a skip ends in it: k items a part, and none of the numbers of the features."""
    net = network(skips=("concatenation",), n_memories=1, stitch_level=1).eval()
    (block, *_), x = net.student.memories, torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        before = net.decode(net.student, net.encode(x))[1][0]
        block.memory.items.zero_()
        assert before.any()
        assert not net.decode(net.student, net.encode(x))[1][0].any()
        taught = net.decode(net.teacher, net.encode(x))[1][0]
        assert taught.any(), "the teacher has no memories"


@pytest.mark.parametrize("skips", [(), ("concatenation",), ("sum", "none", "concatenation")])
@pytest.mark.parametrize("stitch_level", [0, 1, 9])
def test_any_layout_of_the_decoder(skips, stitch_level):
    net = network((3, 30, 26), skips=skips, stitch_level=stitch_level, n_memories=1).eval()
    x = torch.rand(2, 3, 30, 26)
    with torch.no_grad():
        y = net(x)
        levels = net.encode(x)
        _, found = net.decode(net.student, levels)
        _, taught = net.decode(net.teacher, levels)
        assert y.shape == x.shape
        assert (y > 0).all()
        assert (y < 1).all()
        assert [a.shape for a in found] == [b.shape for b in taught]
        assert found[-1].shape[2:] == (net.size if stitch_level < 9 else levels[0].shape[2:])
        # What a level does not skip to, it does not see.
        changed = [*(torch.rand_like(level) for level in levels[:-1]), levels[-1]]
        same = torch.equal(net.decode(net.student, changed)[0], net.decode(net.student, levels)[0])
        assert same == (not any(skip != "none" for skip in skips))


def test_the_published_sizes():
    """A chest of 128 and digits of 96 pixels: vectors of 2048 and 1024 numbers."""
    for side, n_windows, size in ((128, 2, 2048), (96, 3, 1024)):
        with torch.device("meta"):
            net = network((1, side, side), n_windows, width=32)
        assert net.inpainting.memory.items.shape[2] == size
        assert net.inpainting.attention.num_heads == 8
        assert net.discriminator.features[0].out_channels == 16
    with torch.device("meta"):
        net = network((1, 128, 128), width=32, skips=["concatenation"] * 2, n_memories=2, stitch_level=2)
    sizes = [block.memory.items.shape[2] for block in net.student.memories[:2]]
    assert sizes == [256 * 4 * 4, 128 * 8 * 8], "a quarter of a window's map each"


def test_an_encoder_of_ones_own():
    net = network(make_encoder=partial(WindowEncoder, width=3, strides=[(2, 2)]))
    assert net.inpainting.memory.items.shape[2] == 8 * 4 * 4
    assert net.eval()(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def test_images_of_one_window_keep_their_size():
    net = network((1, 1, 9), make_memory=partial(MemoryQueue, 2, 6, shrink=plain)).eval()
    assert net.grid == (1, 2)
    assert net(torch.rand(2, 1, 1, 9)).shape == (2, 1, 1, 9)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(1, 6))
def test_in_eval_mode_each_image_has_its_own_statistics(n, channels, height, width):
    with seeded(0), torch.no_grad():
        norm, x = BatchOrImageNorm(channels), torch.randn(n, channels, height, width)
        norm.weight.normal_(), norm.bias.normal_()
        spread = x.var((2, 3), correction=0, keepdim=True) + norm.eps
        y = (x - x.mean((2, 3), keepdim=True)) / spread.sqrt()
        y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
        assert_close(norm.eval()(x), y, atol=1e-4, rtol=1e-4)
        assert_close(norm.train()(x[:1]), y[:1], atol=1e-4, rtol=1e-4)
        if n > 1:
            assert not torch.allclose(norm(x), y, atol=1e-2), "of the batch, in training"


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 40, 24), (1, 1, 9)])
def test_the_discriminator_gives_a_logit(shape):
    assert ImageDiscriminator(shape, width=2)(torch.rand(5, *shape)).shape == (5,)
