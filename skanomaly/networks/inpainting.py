"""Network of SQUID: windows of an image are encoded, painted anew from normal patterns, and decoded."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import choose_strides, conv_layers, crop_to, last_size, level_widths, pad_to, padded_size

#: Heads of the attention, at most: their number must divide the length of a vector.
N_HEADS = 8


def to_windows(x, grid):
    """Images (n, c, H, W) to windows (n * rows * columns, c, h, w), those of an image one after another."""
    n, c, height, width = x.shape
    rows, columns = grid
    x = x.reshape(n, c, rows, height // rows, columns, width // columns)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def to_images(windows, grid):
    """Undo `to_windows`."""
    rows, columns = grid
    x = windows.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)


def masked_shortcut(features, painted, rho):
    """Painted features (n, c, h, w), but at a random share 1 - rho of the places the given ones instead."""
    # Memories start as noise; what is left unpainted lets the decoder learn all the same.
    kept = torch.rand_like(features[:, :1]) >= rho
    return torch.where(kept, features, painted)


class ConvUnit(nn.Module):
    """Convolution, followed by a residual block of two more convolutions."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.first = nn.Sequential(*conv_layers(n_in, n_out, stride=stride))
        # The last ReLU is left to `forward`, which adds the shortcut before it.
        self.second = nn.Sequential(*conv_layers(n_out, n_out), *conv_layers(n_out, n_out)[:-1])

    def forward(self, x):
        h = self.first(x)
        return F.relu(h + self.second(h))


class WindowEncoder(nn.Module):
    """Windows to a list of features, one of each level, from the size of a window to the smallest.

    Parameters
    ----------
    window_shape : tuple (C, h, w)
    width : int
        Channels of the first level. The next levels have 2, 4, 8 and then 16 times as many.
    strides : list of (int, int)
        Strides of height and width, one pair for each level but the first.
    """

    def __init__(self, window_shape, *, width, strides):
        super().__init__()
        widths = level_widths(width, len(strides) + 1, 16)
        units = [ConvUnit(window_shape[0], width)]
        units += [ConvUnit(a, b, stride) for a, b, stride in zip(widths, widths[1:], strides)]
        self.units = nn.ModuleList(units)

    def forward(self, x):
        levels = []
        for unit in self.units:
            levels.append(unit(levels[-1] if levels else x))
        return levels


class PartMemory(nn.Module):
    """Features (n, c, h, w), cut into parts, each of which is replaced by what a memory holds for its place.

    Parameters
    ----------
    feature_shape : tuple (c, h, w)
    grid : tuple (rows, columns)
        Number of parts along each side, of which there are L in all.
    make_memory : callable (size) -> nn.Module
        Maker of the memory, which takes and gives vectors (n, L, size).
    rho : float
        Share of the places that are replaced in training. In eval mode all are.
    """

    def __init__(self, feature_shape, grid, *, make_memory, rho):
        super().__init__()
        channels, *sides = feature_shape
        part = tuple(math.ceil(side / n) for side, n in zip(sides, grid))
        self.grid, self.rho, self.shape = grid, rho, (channels, *part)
        self.size = tuple(side * n for side, n in zip(part, grid))
        self.memory = make_memory(math.prod(self.shape))

    def forward(self, x):
        parts = to_windows(pad_to(x, self.size), self.grid)
        retrieved = self.memory(parts.flatten(1).unflatten(0, (len(x), -1)))
        y = to_images(retrieved.flatten(0, 1).unflatten(1, self.shape), self.grid)
        y = crop_to(y, x.shape[2:])
        return masked_shortcut(x, y, self.rho) if self.training else y


class WindowDecoder(nn.Module):
    """Features of all levels to images in [0, 1], and to the decoder's own features of each level.

    Parameters
    ----------
    n_channels : int
        Channels of the images.
    shapes : list of (c, h, w)
        Shapes of the encoder's levels for a window.
    grid : tuple (rows, columns)
        Number of windows along each side of an image.
    skips : sequence of {"concatenation", "sum", "none"}
        Connection of each level to the encoder's features of its size, from the smallest level on. Levels
        beyond the sequence have "none".
    stitch_level : int
        Number of levels that work on windows. The others work on whole images.
    n_memories : int
        Number of levels, from that of lowest resolution on, that end in a `PartMemory`. The features of such
        a level are cut into as many parts as there are windows in an image.
    make_memory, rho
        Parameters of each `PartMemory`.
    """

    def __init__(
        self, n_channels, shapes, grid, *, skips, stitch_level, n_memories=0, make_memory=None, rho=1.0
    ):
        super().__init__()
        widths, n_levels = [shape[0] for shape in shapes], len(shapes) - 1
        self.grid, self.stitch_level = grid, min(stitch_level, n_levels)
        self.skips = [*skips, *["none"] * n_levels][:n_levels]
        self.units, self.memories = nn.ModuleList(), nn.ModuleList()
        for level, (a, b) in enumerate(zip(widths[:0:-1], widths[-2::-1])):
            n_in = {"concatenation": a + b, "sum": a, "none": a}[self.skips[level]]
            self.units.append(ConvUnit(n_in, b))
            size = shapes[-2 - level][1:]
            if level >= self.stitch_level:
                size = tuple(side * n for side, n in zip(size, grid))
            self.memories.append(
                PartMemory((b, *size), grid, make_memory=make_memory, rho=rho)
                if level < n_memories
                else nn.Identity()
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
            h = self.memories[level](unit(h))
            found.append(h)
        if self.stitch_level == len(self.units):
            h = to_images(h, self.grid)
        return torch.sigmoid(self.output(h)), found


def _neighbours(grid, padded):
    """Additive attention mask (L, L + 1): each of L locations sees its neighbours in the 3 x 3 around it.

    The last column is for a key of zeros. If `padded`, this key stands for the neighbours beyond the border.
    Otherwise only a location without neighbours sees it, since a softmax over nothing is nan.
    """
    places = torch.cartesian_prod(*map(torch.arange, grid))
    apart = (places[:, None] - places).abs().amax(-1)
    near = apart == 1
    missing = 8 - near.sum(1)
    zeros = missing if padded else 8 * (missing == 8)
    # exp(log(n)) = n: in the softmax one key of zeros then counts as often as neighbours are missing.
    return torch.cat([near.float(), zeros[:, None].float()], dim=1).log()


def _codes(n_locations):
    """Number of each location in binary (L, bits), with as many bits as L itself needs."""
    bits = n_locations.bit_length()
    return torch.tensor(
        [[i >> bit & 1 for bit in range(bits)] for i in range(n_locations)], dtype=torch.float
    )


class InPainting(nn.Module):
    """In-painting block: a window's features are made anew from normal patterns that a memory retrieves.

    Each window attends to the patterns of its neighbours.

    Parameters
    ----------
    feature_shape : tuple (C, h, w)
        Shape of a window's features.
    grid : tuple (rows, columns)
        Number of windows along each side of an image; there are L in all.
    make_memory : callable (size) -> nn.Module
        Maker of the memory, which takes and gives vectors (n, L, size).
    padded : bool
        Whether neighbours beyond the border take part, as zeros.
    """

    def __init__(self, feature_shape, grid, *, make_memory, padded):
        super().__init__()
        channels, height, width = feature_shape
        # Not below 8: the LayerNorm of a vector of one number is zero.
        narrow = max(8, channels // 4)
        self.shape, self.n_locations = (narrow, height, width), math.prod(grid)
        size = math.prod(self.shape)
        self.squeeze = nn.Sequential(*conv_layers(channels, narrow, 1))
        self.memory = make_memory(size)
        self.attention = nn.MultiheadAttention(size, math.gcd(N_HEADS, size), batch_first=True)
        hidden = max(1, size // 4)
        self.feed_forward = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.register_buffer("mask", _neighbours(grid, padded), persistent=False)
        self.register_buffer("codes", _codes(self.n_locations), persistent=False)
        self.widen = nn.Sequential(*conv_layers(narrow + self.codes.shape[1], channels, 1))

    def forward(self, features):
        """Painted features (n * L, C, h, w), given and retrieved features as vectors (n, L, size)."""
        vectors = self.squeeze(features).flatten(1).unflatten(0, (-1, self.n_locations))
        retrieved = self.memory(vectors)
        # Norms before the sums, as in the public code: what was retrieved passes through unchanged.
        h = F.relu(self.norms[0](self.attend(vectors, retrieved)) + retrieved)
        h = F.relu(self.norms[1](self.feed_forward(h)) + h)
        h = h.flatten(0, 1).unflatten(1, self.shape)
        codes = self.codes.repeat(len(vectors), 1)[:, :, None, None].expand(-1, -1, *self.shape[1:])
        return self.widen(torch.cat([h, codes], dim=1)), vectors, retrieved

    def attend(self, vectors, retrieved):
        """Attention of each location, with its own vector as query, to what its neighbours have retrieved."""
        keys = torch.cat([retrieved, torch.zeros_like(retrieved[:, :1])], dim=1)
        return self.attention(vectors, keys, keys, attn_mask=self.mask, need_weights=False)[0]


class BatchOrImageNorm(nn.BatchNorm2d):
    """Normalisation by the statistics of the batch in training, and by those of each image in eval mode."""

    def __init__(self, n_channels):
        super().__init__(n_channels, track_running_stats=False)

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ImageDiscriminator(nn.Module):
    """Discriminator by 5 x 5 convolutions: images to logits (n,), high for real images.

    Running statistics would be a blend of real and painted images, which are normalised apart in training,
    and would fit neither. The public code judges in training mode, one image at a time.
    """

    def __init__(self, image_shape, *, width):
        super().__init__()
        strides = choose_strides(image_shape)
        widths = [image_shape[0], *level_widths(width, len(strides), 8)]
        blocks = []
        for level, (a, b, stride) in enumerate(zip(widths, widths[1:], strides)):
            blocks += [nn.Conv2d(a, b, 5, stride, padding=2)]
            blocks += [BatchOrImageNorm(b)] * (level > 0) + [nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.value = nn.Linear(widths[-1] * math.prod(last_size(image_shape, strides)), 1)

    def forward(self, x):
        return self.value(self.features(x))[:, 0]


@torch.no_grad()
def _shapes_of_levels(encoder, window):
    """Shapes (c, h, w) of the levels that an encoder gives for a window; an error if it gives none."""
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"encoder must make a torch module of a shape, and made a {type(encoder).__name__}")
    # In train mode BatchNorm refuses a single value per channel, and would count these zeros as images.
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
    """Network of SQUID: `encoder`, `inpainting`, the decoders `student` and `teacher`, and `discriminator`.

    Parameters
    ----------
    image_shape : tuple (C, H, W)
    n_windows : int
        Number of windows along each side. A side of one pixel has one window.
    make_encoder : callable (shape) -> nn.Module, or None
        Maker of the encoder for windows (C, h, w). The encoder gives a list of features, each half the
        size of the one before. None is `WindowEncoder`.
    make_memory : callable (size, learned=False) -> nn.Module
        Maker of memories, for `InPainting` and, with learned items, for the student.
    padded : bool
        Parameter of `InPainting`.
    rho : float
        Share of the places of a feature that are painted anew in training. In eval mode all places are.
    width : int
        Channels of the first level.
    n_levels : int or None
        Number of halvings of a window, as in `choose_strides`.
    n_memories : int
        Parameter of the student, a `WindowDecoder`; the teacher has no memories.
    **options
        Parameters of both decoders.
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
        window = n_channels, *padded_size((n_channels, *least), strides)
        self.size = tuple(side * n for side, n in zip(window[1:], self.grid))
        self.image_size, self.rho = tuple(sides), rho
        if make_encoder is None:
            make_encoder = partial(WindowEncoder, width=width, strides=strides)
        self.encoder = make_encoder(window)
        shapes = _shapes_of_levels(self.encoder, window)
        self.inpainting = InPainting(shapes[-1], self.grid, make_memory=make_memory, padded=padded)
        decoder = partial(WindowDecoder, n_channels, shapes, self.grid, **options)
        learned = partial(make_memory, learned=True)
        self.student = decoder(n_memories=n_memories, make_memory=learned, rho=rho)
        self.teacher = decoder()
        self.discriminator = ImageDiscriminator(image_shape, width=max(1, width // 2))

    def encode(self, x):
        """Levels of features, of the windows of images (n, C, H, W)."""
        return self.encoder(to_windows(pad_to(x, self.size), self.grid))

    def paint(self, levels):
        """Levels with the last one painted anew, and the encoded and the retrieved features as vectors."""
        features = levels[-1]
        painted, vectors, retrieved = self.inpainting(features)
        if self.training:
            painted = masked_shortcut(features, painted, self.rho)
        return [*levels[:-1], painted], vectors, retrieved

    def decode(self, decoder, levels):
        """Images (n, C, H, W) by one of the decoders, and the features of each level of the decoder."""
        image, found = decoder(levels)
        return crop_to(image, self.image_size), found

    def forward(self, x):
        """Reconstructions by the student."""
        return self.decode(self.student, self.paint(self.encode(x))[0])[0]
