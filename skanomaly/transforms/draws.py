"""Parts that syntheses share: partners of images, random numbers, boxes and labels."""

import torch


def check_range(name, bounds, of="shares from 0 to 1", *, least=0.0, most=1.0, above=False, number=float):
    """Refuse a parameter that is no pair, low before high, from `least` (not itself with `above`) to `most`.

    `number` makes a number of each bound, and raises an error of what is none; `operator.index` takes whole
    numbers only.
    """
    try:
        low, high = map(number, bounds)
    except (TypeError, ValueError):
        low = high = float("nan")  # in no range
    if not least <= low <= high <= most or (above and low == least):
        raise ValueError(f"{name} must hold {of}, low before high, got {bounds!r}")


def check_share(name, share):
    """Refuse a parameter that is no number from 0 to 1."""
    try:
        fits = 0 <= share <= 1
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name} must lie between 0 and 1, got {share!r}")


def partners(images, sources):
    """One source for each image: the i-th, from the first again where there are fewer sources."""
    if sources.shape[1:] != images.shape[1:] or not len(sources):
        raise ValueError(
            f"sources must be images of the shape {tuple(images.shape[1:])}, one at least, got "
            f"{tuple(sources.shape)}"
        )
    index = torch.arange(len(images), device=sources.device) % len(sources)
    return sources[index].to(images)


def between(n, bounds, generator):
    """Random numbers (n,) between two bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(n, generator=generator)


def uniform(n, bounds, generator, like):
    """Random numbers (n, 1, 1, 1) between two bounds, of the dtype and device of a tensor."""
    return between(n, bounds, generator).to(like)[:, None, None, None]


def draw_boxes(n, sides, generator, *, half_width, margin, square=True):
    """Rows (n, h) and columns (n, w) of random boxes, bool tensors; each box has a pixel at least.

    With `square`, half the height and half the width of a box are the same share of the image's.
    """
    check_range("half_width", half_width, "shares of a side")
    low, high = half_width
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin must be at least 0 and below 0.5, got {margin}")
    inside, size = [], None
    for side in sides:
        if size is None or not square:
            size = torch.rand(n, generator=generator)
        half = torch.round(side * (low + (high - low) * size)).clamp(min=1)
        centre = torch.floor(side * (margin + (1 - 2 * margin) * torch.rand(n, generator=generator)))
        # Half-open, from centre - half to centre + half, as in the public code.
        inside.append((torch.arange(side) + 0.5 - centre[:, None]).abs() < half[:, None])
    return inside


def boxes_around(centres, halves, sides):
    """Rows (n, h) and columns (n, w) within half a side of each centre, half-open."""
    return [
        (torch.arange(side) + 0.5 - torch.floor(centres[:, axis, None])).abs() < halves[:, axis, None]
        for axis, side in enumerate(sides)
    ]


def box_of(rows, columns, like):
    """Pixels (n, 1, h, w) of boxes, and their rows and columns, on the device of a tensor."""
    rows, columns = rows.to(like.device), columns.to(like.device)
    return rows[:, None, :, None] & columns[:, None, None, :], rows, columns


def rolled(x, shares):
    """Images, each rolled by its own shares (n, 2) of height and width."""
    n, _, *sides = x.shape
    at = []
    for side, share in zip(sides, shares.T):
        shift = torch.round(share * side).long()
        at.append(((torch.arange(side) - shift[:, None]) % side).to(x.device))
    image = torch.arange(n, device=x.device)[:, None, None]
    # Channels last: three index tensors that broadcast take the place of the three axes.
    return x.permute(0, 2, 3, 1)[image, at[0][:, :, None], at[1][:, None]].permute(0, 3, 1, 2)


def within_range(made, images):
    """Images, each clipped to the range of values of the image that it was made of."""
    return made.clamp(images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))


def differ(a, b, tolerance):
    """Pixels (n, 1, h, w) in which images differ by more than `tolerance` in a channel."""
    return ((a - b).abs() > tolerance).any(1, keepdim=True)


def labelled(images, masks, strengths):
    """Images, masks and labels, which are `strengths` in the masks and 0 elsewhere."""
    return images, masks, torch.where(masks, strengths.to(images), 0)
