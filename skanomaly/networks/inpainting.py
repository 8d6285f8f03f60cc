"""SQUID: windows are encoded by themselves, painted anew from what is normal in their place, and decoded."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, crop_to, pad_to
from .memory import MemoryMatrix

N_HEADS = 8


def to_windows(x, grid):
    """(n, c, H, W) to (n * rows * columns, c, h, w), windows of an image one after another."""
    n, c, height, width = x.shape
    rows, columns = grid
    x = x.reshape(n, c, rows, height // rows, columns, width // columns)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def to_images(windows, grid):
    """Undo `to_windows`."""
    rows, columns = grid
    x = windows.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)


class ConvUnit(nn.Module):
    """Convolution, then two more beside a shortcut."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x):
        h = self.first(x)
        return F.relu(h + self.second(h))


class WindowEncoder(nn.Module):
    """Windows to features of each level, from their own size to the smallest.

    Parameters
    ----------
    window_shape : tuple (C, h, w)
    width : int
        Channels of the first level; 2, 4, 8 and at most 16 times as many follow.
    strides : list of (int, int)
        One pair a level.
    """

    def __init__(self, window_shape, *, width, strides):
        super().__init__()
        widths = [width * min(16, 2**level) for level in range(len(strides) + 1)]
        units = [ConvUnit(window_shape[0], width)]
        units += [ConvUnit(a, b, stride) for a, b, stride in zip(widths, widths[1:], strides)]
        self.units = nn.ModuleList(units)

    def forward(self, x):
        levels = []
        for unit in self.units:
            levels.append(unit(levels[-1] if levels else x))
        return levels


class WindowDecoder(nn.Module):
    """Features of all levels to an image in [0, 1], and the features of each level on the way.

    Parameters
    ----------
    n_channels : int
        Of images.
    widths : list of int
        Channels of the encoder's levels.
    grid : tuple (rows, columns)
        Windows of an image.
    skips : sequence of {"concatenation", "sum", "none"}
        What each level does with the encoder's features of its size, the smallest first; none beyond.
    stitch_level : int
        Level before which windows become images.
    n_memories : int
        Levels that end in a learned memory, the smallest first.
    n_slots : int
        Items in each.
    """

    def __init__(self, n_channels, widths, grid, *, skips, stitch_level, n_memories=0, n_slots=0):
        super().__init__()
        n_levels = len(widths) - 1
        self.grid, self.stitch_level = grid, min(stitch_level, n_levels)
        self.skips = [*skips, *["none"] * n_levels][:n_levels]
        self.units, self.memories = nn.ModuleList(), nn.ModuleList()
        for level, (a, b) in enumerate(zip(widths[:0:-1], widths[-2::-1])):
            n_in = {"concatenation": a + b, "sum": a, "none": a}[self.skips[level]]
            self.units.append(ConvUnit(n_in, b))
            self.memories.append(
                MemoryMatrix(n_slots, b, threshold=0.0) if level < n_memories else nn.Identity()
            )
        self.shortcuts = nn.ModuleList(
            nn.Conv2d(b, a, 1) if skip == "sum" else nn.Identity()
            for skip, a, b in zip(self.skips, widths[:0:-1], widths[-2::-1])
        )
        self.output = nn.Conv2d(widths[0], n_channels, 1)

    def forward(self, levels):
        h, found = levels[-1], []
        for level, unit in enumerate(self.units):
            skip = levels[-2 - level]
            if level == self.stitch_level:
                h = to_images(h, self.grid)
            if level >= self.stitch_level:
                skip = to_images(skip, self.grid)
            h = F.interpolate(h, skip.shape[2:], mode="bilinear", align_corners=False)
            if self.skips[level] == "concatenation":
                h = torch.cat([h, skip], dim=1)
            elif self.skips[level] == "sum":
                h = h + self.shortcuts[level](skip)
            h = unit(h)
            if isinstance(self.memories[level], MemoryMatrix):
                h, _ = self.memories[level](h)
            found.append(h)
        if self.stitch_level == len(self.units):
            h = to_images(h, self.grid)
        return torch.sigmoid(self.output(h)), found


def _neighbours(grid, padded):
    """(L, L + 1) additive mask of attention: 0 to each of the neighbours in the 3 x 3 around a location.

    The last column is a key of zeros, which stands for neighbours beyond the border: as many as are missing,
    for `padded`, or only where a location has no neighbour at all.
    """
    places = torch.cartesian_prod(*map(torch.arange, grid))
    apart = (places[:, None] - places).abs().amax(-1)
    near = apart == 1
    missing = 8 - near.sum(1)
    zeros = missing if padded else 8 * (missing == 8)
    return torch.cat([near.float(), zeros[:, None].float()], dim=1).log()


def _codes(n_locations):
    """Each location's number in binary (L, bits), with the bits that L itself needs."""
    bits = n_locations.bit_length()
    return torch.tensor(
        [[i >> bit & 1 for bit in range(bits)] for i in range(n_locations)], dtype=torch.float
    )


class InPainting(nn.Module):
    """Each window's feature anew: from its nearest normal patterns, by attention to those of its neighbours.

    Parameters
    ----------
    feature_shape : tuple (C, h, w)
        Of a window.
    grid : tuple (rows, columns)
    make_memory : callable (size) -> module from (n, L, size) to (n, L, size)
    padded : bool
        Whether neighbours beyond the border count as zeros.
    """

    def __init__(self, feature_shape, grid, *, make_memory, padded):
        super().__init__()
        channels, height, width = feature_shape
        narrow = max(8, channels // 4)  # a LayerNorm of one number would leave nothing
        self.shape, self.n_locations = (narrow, height, width), math.prod(grid)
        size = math.prod(self.shape)
        self.squeeze = _pointwise(channels, narrow)
        self.memory = make_memory(size)
        self.attention = nn.MultiheadAttention(size, math.gcd(N_HEADS, size), batch_first=True)
        hidden = max(1, size // 4)
        self.feed_forward = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.register_buffer("mask", _neighbours(grid, padded), persistent=False)
        self.register_buffer("codes", _codes(self.n_locations), persistent=False)
        self.widen = _pointwise(narrow + self.codes.shape[1], channels)

    def forward(self, features):
        """Painted features (n * L, C, h, w), and as vectors (n, L, size) the features and those retrieved."""
        vectors = self.squeeze(features).flatten(1).unflatten(0, (-1, self.n_locations))
        retrieved = self.memory(vectors)
        h = F.relu(self.norms[0](self.attend(vectors, retrieved) + retrieved))
        h = F.relu(self.norms[1](self.feed_forward(h) + h))
        h = h.flatten(0, 1).unflatten(1, self.shape)
        codes = self.codes.repeat(len(vectors), 1)[:, :, None, None].expand(-1, -1, *self.shape[1:])
        return self.widen(torch.cat([h, codes], dim=1)), vectors, retrieved

    def attend(self, vectors, retrieved):
        """Each location asks with its feature what its neighbours have retrieved."""
        keys = torch.cat([retrieved, torch.zeros_like(retrieved[:, :1])], dim=1)
        return self.attention(vectors, keys, keys, attn_mask=self.mask, need_weights=False)[0]


def _pointwise(n_in, n_out):
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class ImageDiscriminator(nn.Module):
    """Images to logits (n,): high for real ones. Convolutions 5 x 5 down to about 4 pixels."""

    def __init__(self, image_shape, *, width):
        super().__init__()
        strides = choose_strides(image_shape)
        widths = [image_shape[0], *(width * min(8, 2**level) for level in range(len(strides)))]
        blocks = []
        for level, (a, b, stride) in enumerate(zip(widths, widths[1:], strides)):
            blocks += [nn.Conv2d(a, b, 5, stride, padding=2)]
            blocks += [nn.BatchNorm2d(b)] * (level > 0) + [nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        sides = [math.ceil(side / math.prod(axis)) for side, axis in zip(image_shape[1:], zip(*strides))]
        self.value = nn.Linear(widths[-1] * math.prod(sides), 1)

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


def _shapes_of_levels(encoder, window):
    """(c, h, w) of what an encoder gives for a window; refused where that is not levels."""
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"encoder must make a torch module of a shape, and made a {type(encoder).__name__}")
    levels = encoder.eval()(torch.zeros(1, *window))
    encoder.train()
    rule = (
        "encoder must make a module that gives a list of two features (n, c, h, w) or more, the first of the "
        f"size of the window, {window[1]} x {window[2]}, none larger than the one before"
    )
    if not isinstance(levels, (list, tuple)) or not all(isinstance(level, torch.Tensor) for level in levels):
        raise ValueError(f"{rule}; it gave a {type(levels).__name__}")
    shapes = [tuple(level.shape) for level in levels]
    sizes = [math.prod(shape[2:]) for shape in shapes]
    falling = all(a >= b for a, b in zip(sizes, sizes[1:]))
    right = {len(shape) for shape in shapes} == {4} and shapes[0][2:] == window[1:] and falling
    if len(shapes) < 2 or not right:
        raise ValueError(f"{rule}; it gave features of the shapes {shapes}")
    return [shape[1:] for shape in shapes]


class InPaintingNetwork(nn.Module):
    """Parts `encoder`, `inpainting`, `student`, `teacher` and `discriminator`.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_windows : int
        Windows along each side; a side of one pixel has one.
    make_encoder : callable, or None
        From the shape (C, h, w) of a window to a module that gives a list of features, each half the size of
        the one before; None is `WindowEncoder`.
    make_memory, padded : as of `InPainting`
    rho : float
        Share of the places that are painted anew in training; all are else.
    width, n_levels : int
    options : as of `WindowDecoder`; the memories are the student's
    """

    def __init__(
        self,
        image_shape,
        n_windows,
        *,
        make_encoder,
        make_memory,
        padded,
        rho,
        width,
        n_levels,
        n_memories,
        n_slots,
        **options,
    ):
        super().__init__()
        n_channels, *sides = image_shape
        for side in sides:
            if 1 < side < n_windows:
                raise ValueError(
                    f"n_windows must be at most the shorter side of the images, {sides[0]} x {sides[1]} "
                    f"pixels, got {n_windows}: no padding makes windows of less than a pixel"
                )
        self.grid = tuple(1 if side == 1 else n_windows for side in sides)
        least = tuple(math.ceil(side / n) for side, n in zip(sides, self.grid))
        strides = choose_strides((n_channels, *least), n_levels)
        halvings = tuple(map(math.prod, zip(*strides)))
        window = tuple(math.ceil(side / by) * by for side, by in zip(least, halvings))
        self.size = tuple(side * n for side, n in zip(window, self.grid))
        self.image_size, self.rho = tuple(sides), rho
        window = n_channels, *window
        self.encoder = (
            WindowEncoder(window, width=width, strides=strides)
            if make_encoder is None
            else make_encoder(window)
        )
        with torch.no_grad():
            shapes = _shapes_of_levels(self.encoder, window)
        widths = [shape[0] for shape in shapes]
        self.inpainting = InPainting(
            tuple(shapes[-1]), grid=self.grid, make_memory=make_memory, padded=padded
        )
        options |= {"grid": self.grid}
        self.student = WindowDecoder(n_channels, widths, n_memories=n_memories, n_slots=n_slots, **options)
        self.teacher = WindowDecoder(n_channels, widths, **options)
        self.discriminator = ImageDiscriminator(image_shape, width=max(1, width // 2))

    def encode(self, x):
        return self.encoder(to_windows(pad_to(x, self.size), self.grid))

    def paint(self, levels):
        """Levels with the last one painted anew, and its vectors and what was retrieved for them."""
        features = levels[-1]
        painted, vectors, retrieved = self.inpainting(features)
        if self.training:
            # Places that are not painted let the student learn early on (masked shortcut).
            kept = torch.rand_like(features[:, :1]) >= self.rho
            painted = torch.where(kept, features, painted)
        return [*levels[:-1], painted], vectors, retrieved

    def decode(self, decoder, levels):
        image, found = decoder(levels)
        return crop_to(image, self.image_size), found

    def forward(self, x):
        """Reconstructions."""
        return self.decode(self.student, self.paint(self.encode(x))[0])[0]
