"""Densities of feature vectors of normal images: Gaussians, from their moments."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .backbone import blur

#: Least deviation of a feature, as a share of the median deviation of those that are not constant.
LEAST_DEVIATION = 1e-3
#: Least deviation of a feature that is not constant, as a share of its mean: less is float32's rounding.
ROUNDING = 1e-6
#: Least shrinkage. Without any, directions in which no two images differ have no variance.
LEAST_SHRINKAGE = 1e-3
#: Largest square of what a vector has beyond fitted ones, as a share of its own, for one that is one of them.
WITHIN = 1e-8
#: Least number of directions that fitted vectors leave, for others to be told from them.
LEFT = 4
#: Most channels of maps whose covariances are learned at each position; of more, so many are drawn.
MOST_CHANNELS = 512
#: Way in which torch.cdist takes differences of vectors, and not products.
EXACT = "donot_use_mm_for_euclid_dist"
#: Largest stride of maps that are fine enough to show where something is.
LARGEST_STRIDE = 16


class Moments:
    """Number, sums and sums of products of feature vectors, for each of some positions.

    Products are those of the differences from the mean. Sums of plain products would do in exact arithmetic,
    but lose the digits of a feature that hardly varies.

    Parameters
    ----------
    n_positions : int
    n_features : int
    """

    def __init__(self, n_positions, n_features, device="cpu"):
        self.count = 0
        options = {"dtype": torch.float64, "device": device}
        self.sums = torch.zeros(n_positions, n_features, **options)
        self.products = torch.zeros(n_positions, n_features, n_features, **options)

    def add(self, x):
        """Count vectors (n, n_positions, n_features)."""
        x = x.double().movedim(1, 0)
        n, sums = x.shape[1], x.sum(1)
        centred = x - sums[:, None] / n
        self.products.baddbmm_(centred.mT, centred)
        self._shift(n, sums)

    def merge(self, other):
        """Count the vectors of other moments."""
        self.products += other.products.to(self.products.device)
        self._shift(other.count, other.sums.to(self.sums.device))

    def _shift(self, n, sums):
        """Add sums of n vectors, and what the products change by the move of the mean (Chan et al. 1983)."""
        if self.count:
            between = sums / n - self.mean()
            share = self.count * n / (self.count + n)
            self.products.baddbmm_(between[:, :, None], between[:, None], alpha=share)
        self.count += n
        self.sums += sums

    def mean(self):
        return self.sums / self.count

    def covariance(self):
        """Covariances (n_positions, n_features, n_features), divided by the number of vectors."""
        return self.products / self.count


class KeptMoments(nn.Module):
    """`Moments` as float64 buffers, which are saved. Products are symmetric, so that one triangle is kept.

    Parameters
    ----------
    n_positions : int
    n_features : int
    """

    def __init__(self, n_positions, n_features):
        super().__init__()
        self.n_features = n_features
        n_products = n_features * (n_features + 1) // 2
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(n_positions, n_features, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(n_positions, n_products, dtype=torch.float64))

    def keep(self, moments):
        rows, columns = self._triangle()
        self.count.fill_(moments.count)
        self.sums.copy_(moments.sums)
        self.products.copy_(moments.products[:, rows, columns])

    def moments(self):
        """Moments that were kept."""
        moments = Moments(*self.sums.shape, self.sums.device)
        rows, columns = self._triangle()
        moments.count = int(self.count)
        moments.sums += self.sums
        moments.products[:, rows, columns] = self.products
        moments.products[:, columns, rows] = self.products
        return moments

    def _triangle(self):
        return torch.triu_indices(self.n_features, self.n_features, device=self.sums.device)


def total(parts, n_positions, n_features, device):
    """Moments of the vectors of all modules `parts`, which keep theirs as `sums`."""
    moments = Moments(n_positions, n_features, device)
    for part in parts:
        moments.merge(part.sums.moments())
    return moments


def deviations(variance, mean):
    """Square roots of variances of features with these means, none so small that it would blow up noise."""
    deviation = variance.clamp(min=0).sqrt()
    # The median of these alone: most features of images with an empty channel are constant.
    varies = deviation > ROUNDING * mean.abs()
    if not varies.any():
        return torch.ones_like(deviation)
    return deviation.clamp(min=LEAST_DEVIATION * float(deviation[varies].median()))


def oas(n, trace, square, n_features):
    """Coefficient of shrinkage by Oracle Approximating Shrinkage (Chen et al. 2010), as in scikit-learn.

    Parameters
    ----------
    n : int
        Number of vectors.
    trace, square : tensor
        Trace of the covariance, and sum of its squared entries.
    n_features : int
    """
    mean, alpha = trace / n_features, square / n_features**2
    numerator, denominator = alpha + mean**2, (n + 1) * (alpha - mean**2 / n_features)
    return torch.where(denominator > 0, numerator / denominator, 1).clamp(max=1)


def ledoit_wolf(n, trace, square, fourth, n_features):
    """Coefficient of shrinkage by Ledoit and Wolf (2004), as in scikit-learn.

    Parameters
    ----------
    n, trace, square, n_features
        Arguments of `oas` with these names.
    fourth : tensor
        Sum over the vectors of their squared squared length, |z|^4.
    """
    beta = (fourth / n - square) / (n_features * n)
    delta = (square - trace**2 / n_features) / n_features
    return torch.where(delta > 0, torch.minimum(beta, delta) / delta, 0)


class ShrunkGaussian(nn.Module):
    """One Gaussian of feature vectors whose covariance is shrunk towards a multiple of the identity.

    The covariance is kept by its largest eigenvalues and their eigenvectors; in all other directions it is
    the multiple of the identity alone. With fewer images than features this is exact. Only the images that it
    was fitted to lie in the span of the eigenvectors then. They are near to the mean by construction, and are
    judged as if they had been left out, if the span leaves `LEFT` directions or more.

    Parameters
    ----------
    n_features : int
    n_images : int
        Number of images that it is fitted to.
    remembers : bool, default=False
        Whether the images are remembered, for `nearest`.
    keeps : bool, default=False
        Whether the sums from which it is fitted are kept as `sums`, for `fit_moments`.
    """

    def __init__(self, n_features, n_images, *, remembers=False, keeps=False):
        super().__init__()
        self.n_images, rank = n_images, max(1, min(n_images - 1, n_features))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("deviation", torch.ones(n_features))
        self.register_buffer("basis", torch.zeros(rank, n_features))
        self.register_buffer("variances", torch.ones(rank))
        self.register_buffer("floor", torch.ones(()))
        self.register_buffer("shrinkage", torch.zeros(()))
        self.register_buffer("bank", torch.zeros(n_images, rank) if remembers else None)
        self.sums = KeptMoments(1, n_features) if keeps else None

    def fit_rows(self, rows, shrinkage):
        """Fit to vectors (n, d), through the Gram matrix if they are fewer than their features."""
        rows = rows.double()
        n, d = rows.shape
        mean = rows.mean(0)
        deviation = deviations((rows - mean).square().mean(0), mean)
        z = (rows - mean) / deviation
        if n > d:
            covariance = z.mT @ z / n
            values, vectors = torch.linalg.eigh(covariance)
            basis = vectors.mT
        else:
            values, vectors = torch.linalg.eigh(z @ z.mT / n)
            # The first is zero, since the rows are centred.
            values, vectors = values[1:], vectors[:, 1:]
            basis = (vectors.mT @ z) / (n * values.clamp(min=1e-30)).sqrt()[:, None]
        fourth = z.square().sum(1).square().sum()
        self._set(n, mean, deviation, basis, values, shrinkage, fourth)
        if self.bank is not None:
            self.bank.copy_((z @ self.basis.mT.double()) / self.variances.double() ** 0.25)

    def fit_moments(self, moments, shrinkage):
        """Fit to vectors by their moments, at one position, and keep these; not for "ledoit_wolf"."""
        mean, covariance = moments.mean()[0], moments.covariance()[0]
        deviation = deviations(covariance.diagonal(), mean)
        values, vectors = torch.linalg.eigh(covariance / deviation / deviation[:, None])
        # Centred vectors that are fewer than their features have no variance in all further directions.
        rank = len(self.basis)
        self._set(moments.count, mean, deviation, vectors.mT[-rank:], values[-rank:], shrinkage)
        self.sums.keep(moments)

    def _set(self, n, mean, deviation, basis, values, shrinkage, fourth=None):
        values = values.clamp(min=0)
        d, trace, square = len(mean), values.sum(), values.square().sum()
        if shrinkage == "oas":
            rho = oas(n, trace, square, d)
        elif shrinkage == "ledoit_wolf":
            rho = ledoit_wolf(n, trace, square, fourth, d)
        else:
            rho = torch.tensor(float(shrinkage), dtype=torch.float64)
        rho = rho.clamp(min=LEAST_SHRINKAGE)
        target = trace / d
        if target <= 0:  # all images are equal
            target, rho = torch.ones_like(target), torch.ones_like(rho)
        # Directions in which the images do not differ have no eigenvector of their own to be trusted.
        basis = torch.where((values > 1e-10 * values.max())[:, None], basis, 0)
        learned = {
            "mean": mean,
            "deviation": deviation,
            "basis": basis,
            "variances": (1 - rho) * values + rho * target,
            "floor": rho * target,
            "shrinkage": rho,
        }
        for name, value in learned.items():
            getattr(self, name).copy_(value)

    def whiten(self, x):
        """Coordinates (n, rank) of vectors along the eigenvectors, and the square of what is left (n,)."""
        z = (x - self.mean) / self.deviation
        along = z @ self.basis.mT
        return along, (z - along @ self.basis).square().sum(1)

    def forward(self, x):
        """Squared Mahalanobis distance (n,) of vectors (n, d)."""
        along, rest = self.whiten(x)
        squares = (along.square() / self.variances).sum(1) + rest / self.floor
        if len(self.basis) + LEFT > x.shape[1]:
            return squares
        own = rest <= WITHIN * (along.square().sum(1) + rest)
        # Sherman-Morrison: mean and covariance without one vector, at the same shrinkage and deviations.
        others = self.n_images - 1
        # Of two vectors with hardly any shrinkage, what is left is rounding.
        left = (1 - (1 - self.shrinkage) * squares / others).clamp(min=ROUNDING)
        left_out = squares / left * self.n_images / others
        return torch.where(own, left_out, squares)

    def nearest(self, x, k):
        """Mean distance (n,) of vectors to the k nearest remembered ones, after whitening by half.

        Vectors are multiplied by C^(-1/4), where C is the covariance. A remembered vector is not its own
        nearest.
        """
        along, rest = self.whiten(x)
        # Remembered vectors lie in the span of the basis: what leaves it is as far from all of them.
        rest = (rest / self.floor.sqrt())[:, None]
        # Differences, not torch.cdist's products: the nearest are close, and their products would cancel.
        along = along / self.variances**0.25
        distances = torch.cdist(along, self.bank, compute_mode=EXACT).square() + rest
        k = min(k, len(self.bank) - 1)
        found = distances.topk(k + 1, largest=False).values
        own = found[:, 0] <= WITHIN * (along.square().sum(1) + rest[:, 0])
        found = found.sqrt()
        return torch.where(own, found[:, 1:].mean(1), found[:, :-1].mean(1))


class PositionGaussians(nn.Module):
    """A Gaussian for each position of feature maps, after a projection to fewer features (PaDiM).

    Parameters
    ----------
    n_features : int
        Channels of the maps.
    n_components : int
        Number of features after the projection.
    size : tuple (h, w)
        Positions.
    keeps : bool, default=False
        Whether the sums from which it is fitted are kept as `sums`, for a `fit` with `parts`.
    """

    def __init__(self, n_features, n_components, size, *, keeps=False):
        super().__init__()
        n_positions, n_chosen = size[0] * size[1], min(n_features, MOST_CHANNELS)
        n_components = min(n_components, n_chosen)
        self.register_buffer("chosen", torch.arange(n_chosen))
        self.register_buffer("projection", torch.zeros(n_chosen, n_components))
        self.register_buffer("mean", torch.zeros(n_positions, n_components))
        self.register_buffer("whitening", torch.zeros(n_positions, n_components, n_components))
        self.sums = KeptMoments(n_positions, n_chosen) if keeps else None
        self.size = size

    def vectors(self, maps):
        """Vectors (n, n_positions, n_chosen) of maps (n, c, h, w)."""
        return maps.flatten(2).mT[..., self.chosen]

    def fit(self, batches, reduction, regularization, parts=()):
        """Fit to maps, and to those to which other modules were fitted.

        Parameters
        ----------
        batches : iterable of (n, c, h, w) tensors
        reduction : {"pca", "random"}
            Projection to the principal components of the features of all positions, or to features drawn at
            random.
        regularization : float or "oas"
            Multiple of the identity that is added to each covariance, or shrinkage of each.
        parts : sequence of PositionGaussians, default=()
            Modules that keep their sums. What the first has drawn is not drawn anew.

        Raises
        ------
        ValueError
            If the parts have drawn other features.
        """
        n_features, n_components = self.projection.shape
        moments = total(parts, len(self.mean), n_features, self.mean.device)
        if parts:
            self.chosen.copy_(parts[0].chosen)
            _refuse_other_draws(parts, reduction)
        for k, maps in enumerate(batches):
            if k == 0 and not parts and maps.shape[1] > n_features:
                self.chosen.copy_(torch.randperm(maps.shape[1])[:n_features].sort().values)
            moments.add(self.vectors(maps))
        mean, covariance = moments.mean(), moments.covariance()
        # Of the features at all positions: within them, and between their means.
        center = mean.mean(0)
        whole = covariance.mean(0) + (mean - center).mT @ (mean - center) / len(mean)
        deviation = deviations(whole.diagonal(), center)
        options = {"dtype": whole.dtype, "device": whole.device}
        if reduction == "pca":
            directions = torch.linalg.eigh(whole / deviation / deviation[:, None])[1].flip(1)
        elif parts:
            directions = (parts[0].projection != 0).to(**options)
        else:
            directions = torch.eye(n_features, **options)[:, torch.randperm(n_features)]
        projection = directions[:, :n_components] / deviation[:, None]
        covariance = projection.mT @ covariance @ projection
        identity = torch.eye(n_components, **options)
        if regularization == "oas":
            trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
            rho = oas(moments.count, trace, covariance.square().sum((1, 2)), n_components)[:, None, None]
            # Positions at which all images are equal have no scale of their own.
            target = torch.where(trace > 0, trace / n_components, 1)[:, None, None]
            covariance = (1 - rho) * covariance + rho * target * identity
        else:
            covariance = covariance + regularization * identity
        factor = torch.linalg.cholesky(covariance)
        self.projection.copy_(projection)
        self.mean.copy_(mean @ projection)
        self.whitening.copy_(torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))
        if self.sums is not None:
            self.sums.keep(moments)

    def forward(self, maps):
        """Mahalanobis distance (n, h, w) at each position of maps (n, c, h, w)."""
        x = self.vectors(maps).movedim(1, 0) @ self.projection - self.mean[:, None]
        distances = (x @ self.whitening.mT).square().sum(2).sqrt()
        return distances.mT.unflatten(1, self.size)


def _refuse_other_draws(parts, reduction):
    """Raise an error if not all parts have drawn the same features at random."""
    first = parts[0]
    for k, part in enumerate(parts):
        pairs = [(part.chosen, first.chosen)]
        if reduction == "random":
            pairs.append((part.projection != 0, first.projection != 0))
        if not all(torch.equal(own.cpu(), expected.cpu()) for own, expected in pairs):
            raise ValueError(
                f"detectors[{k}] drew other features at random than detectors[0]; fit all of them with the "
                "same random_state, a number"
            )


def fine(shapes, size):
    """Numbers of the maps (c, h, w) whose stride is at most `LARGEST_STRIDE`, for an input of this size."""
    wanted = [max(1, side // LARGEST_STRIDE) for side in size]
    found = [k for k, shape in enumerate(shapes) if shape[1] >= wanted[0] and shape[2] >= wanted[1]]
    return found or [max(range(len(shapes)), key=lambda k: shapes[k][1] * shapes[k][2])]


def joined(maps, pooled):
    """One map (n, c, h, w) of several: averaged to the size of the smallest, and over 3 x 3 positions.

    `pooled` is what the backbone does to averages.
    """
    size = smallest([m.shape[1:] for m in maps])
    maps = torch.cat([F.adaptive_avg_pool2d(m, size) for m in maps], dim=1)
    return pooled(F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False))


def enlarged(maps, size, share):
    """Maps (n, h, w) enlarged to a size (h, w), after a Gaussian filter of this share of each side."""
    maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
    return blur(maps, [share * side for side in size])[:, 0]


def map_scores(maps, top_fraction):
    """Scores (n,) of maps (n, h, w) by name: their mean, maximum, and the mean of their largest pixels."""
    flat = maps.flatten(1)
    n_top = max(1, round(top_fraction * flat.shape[1]))
    top = flat.topk(n_top, dim=1).values.mean(1)
    return {"mean": flat.mean(1), "max": flat.amax(1), "top": top}


def smallest(shapes):
    """Height and width of the smallest of the maps (c, h, w)."""
    return min((shape[1:] for shape in shapes), key=math.prod)
