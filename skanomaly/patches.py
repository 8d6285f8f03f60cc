"""PatchDetector: a detector trained on crops and slid over larger images. Labelled crops to test it with."""

import math
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ._arrays import check_masks
from ._containers import holds_tensors, read_container
from ._finite import unlimited
from ._format import (
    InputFormat,
    check_kind,
    check_X,
    find_intensity_range,
    kind,
    note_features,
    refuse_one_image,
    warn_of_constants,
)
from ._parameters import pair
from ._random import draw_seed
from ._windows import ImageStack, cover, profile, starts
from .base import CompositeDetector, Judgement, tells_unlabelled
from .detectors.autoencoder import AutoEncoder
from .labels import training_rows

__all__ = ["PatchDetector", "extract_patches"]

#: Number of windows that are enumerated at a time, or those of one image if it has more. The table of all
#: windows of many large images would fill the memory.
N_WINDOWS = 4096


class StackFormat(InputFormat):
    """Format of images that may differ in size. Its image shape is that of the smallest image."""

    @classmethod
    def learn(cls, X, y, detector, image_range):
        images = cls._stack(read_container(X), detector, fitting=True, tensor=holds_tensors(X))
        used, codes = training_rows(y, len(images))
        intensity_range = find_intensity_range(images.X, cls._given_range(detector), used)
        warn_of_constants(images.X, used)
        normal = images.subset(np.flatnonzero(used))
        normal.y = codes
        smallest = normal.sizes[normal.sizes.prod(1).argmin()]
        layout = replace(images.layouts[0], image_shape=(images.channels, *map(int, smallest)))
        return cls(layout, kind(images.dtype), intensity_range, image_range), normal

    def open(self, X, detector):
        X = read_container(X)
        shape = getattr(X, "shape", ())
        if len(shape) == 2:
            # Images may have any size, also that of X.
            refuse_one_image(shape, replace(self.layout, image_shape=(self.image_shape[0], *shape)))
        images = self._stack(X, detector, fitting=False)
        window = self.image_shape[0], *detector.patch_size_
        for size in images.sizes.tolist():
            if images.channels != window[0] or any(np.less(size, window[1:])):
                raise ValueError(
                    f"X must hold images of {window[0]} channels no smaller than a window, "
                    f"(C, h, w) = {window}, got {(images.channels, *size)}"
                )
        check_kind(images.dtype, self.kind, self._given_range(detector))
        return images

    @staticmethod
    def _given_range(detector):
        """Parameter `intensity_range`, which PatchDetector leaves to the detector inside."""
        return "auto" if detector.detector is None else detector.detector.intensity_range

    @staticmethod
    def _stack(X, detector, *, fitting, tensor=False):
        """Images of X after the checks that do not depend on what was fitted."""
        if not _is_list_of_images(X):
            X = check_X(X, detector, fitting=fitting)
        elif X[0].dtype.kind not in "biuf":
            raise TypeError(f"X must hold real numbers, got dtype {X[0].dtype}")
        elif fitting:
            note_features(detector, min(len(image) for image in X))
        parameters = detector.channel_axis, detector.image_shape
        return ImageStack(X, *parameters, known=not fitting, tensor=tensor)


class PatchDetector(CompositeDetector):
    """Detector of patches, for images larger than a detector can take.

    A detector learns from random crops of the normal images. To judge an image, the detector judges windows
    that cover it. Maps of the windows are blended where they overlap, and the image's score is pooled from
    the scores of its windows. Images may be of any size, and of different sizes when given as a list.

    Parameters
    ----------
    detector : BaseDetector, default=None
        Detector that judges a window; None is ``AutoEncoder()``. All of its parameters, among them
        `max_epochs` and `device`, are set by nested names such as ``detector__max_epochs``.
    patch_size : int or tuple (h, w), default=None
        Size of a window, c in the f-AnoGAN paper. None is 64, or the smallest side of the training images
        if that is less.
    stride : int or tuple (h, w), default=None
        Step from one window to the next, at most `patch_size`. None is half a window.
    n_patches : int, default=16
        Number of random crops of each normal image, K in the paper.
    pooling : {"max", "mean", "top"}, default="max"
        Pooling of the windows' scores: the worst, the mean of all, or the mean of the worst `top_fraction`.
    top_fraction : float, default=0.1
        Share of the windows that count for "top", but at least one window.
    {parameters}
    random_state : int, RandomState or None, default=None
        Source of the random crops and, unless None, of the detector's own ``random_state``.

    Attributes
    ----------
    detector_ : BaseDetector
        Detector fitted to the crops.
    patch_size_ : tuple (h, w)
        Size of a window.
    stride_ : tuple (h, w)
        Step from one window to the next.
    {attributes}

    See Also
    --------
    extract_patches : Labelled crops, to test a detector before it is put in a PatchDetector.

    Notes
    -----
    :Family: composite
    :Trained on: random crops of normal images
    :Score: the worst score of a window, or a mean
    :Map: the detector's maps, blended where windows overlap; the windows' scores, if it has no map
    :Departures: the papers judge single crops, and do not say how the map of a whole image is made of them
    :Variants:
        * f-AnoGAN on patches: ``PatchDetector(FAnoGAN())``

    Windows lie on a grid from the upper left corner; the last of a row or column ends at the border.
    Maps are blended with weights that fall linearly from the middle of a window to its edges, where they are
    not zero. A batch of windows and the map of one image are in memory at a time.

    `score_components` are those of the detector, pooled. ``image_shape_`` is the shape of the smallest
    training image. For a list of images, `channel_axis` is an axis of the array that the images would make,
    whose first axis counts the images.

    References
    ----------
    .. [1] Schlegl, T., Seeböck, P., Waldstein, S. M., Langs, G., Schmidt-Erfurth, U. (2019).
       "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks".
       Medical Image Analysis 54, 30-44. `doi:10.1016/j.media.2019.01.010
       <https://doi.org/10.1016/j.media.2019.01.010>`_

    Examples
    --------
    >>> from skanomaly import AutoEncoder, PatchDetector
    >>> from skanomaly.datasets import load_oct
    >>> scans = load_oct().images[:4]
    >>> inner = AutoEncoder(hidden_size=64, max_epochs=1)
    >>> detector = PatchDetector(inner, patch_size=32, random_state=0).fit(scans)
    >>> detector.score_samples(scans).shape, detector.anomaly_map(scans).shape == scans.shape
    ((4,), True)
    """

    _parameter_constraints = {
        "detector": [HasMethods(["fit", "iter_batches"]), None],
        "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "stride": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "n_patches": [Interval(Integral, 1, None, closed="left")],
        "pooling": [StrOptions({"max", "mean", "top"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        detector=None,
        *,
        patch_size=None,
        stride=None,
        n_patches=16,
        pooling="max",
        top_fraction=0.1,
        contamination=0.1,
        pixel_contamination=0.01,
        channel_axis="auto",
        image_shape=None,
        random_state=None,
    ):
        self.detector = detector
        self.patch_size = patch_size
        self.stride = stride
        self.n_patches = n_patches
        self.pooling = pooling
        self.top_fraction = top_fraction
        self._assign_shared(locals())

    _format_class = StackFormat

    network_ = property(lambda self: self.detector_.network_)
    history_ = property(lambda self: self.detector_.history_)
    n_iter_ = property(lambda self: self.detector_.n_iter_)
    device_ = property(lambda self: self.detector_.device_)

    def _learn(self, images):
        self.patch_size_ = _find_patch_size(self.patch_size, images.sizes)
        self.stride_ = _find_stride(self.stride, self.patch_size_)
        rng = np.random.default_rng(draw_seed(self.random_state))
        detector = AutoEncoder() if self.detector is None else clone(self.detector)
        # Windows are (n, c, h, w), whatever the layout of X.
        detector.set_params(channel_axis=1, image_shape=None)
        if self.random_state is not None:
            detector.set_params(random_state=int(rng.integers(2**31)))
        low, high = self.intensity_range_
        if low < high:  # the range of whole images, since crops might miss an end of it
            detector.set_params(intensity_range=(low, high))
        windows = images.random_windows(self.patch_size_, self.n_patches, rng)
        # Other detectors have no use for y, and would warn of its labels once more.
        told = self._tells_unlabelled and images.y is not None
        self.detector_ = detector.fit(windows, images.y[windows.table[:, 0]] if told else None)

    @property
    def _tells_unlabelled(self):
        return self.detector is not None and tells_unlabelled(self.detector)

    def _components(self, images):
        for _, windows in self._grids(images):
            ends = np.flatnonzero(np.diff(windows.table[:, 0])) + 1
            yield {
                name: [self._pool(part) for part in np.split(unlimited(values), ends)]
                for name, values in self.detector_.score_components(windows).items()
            }

    def _pool(self, scores):
        if self.pooling == "max":
            return scores.max()
        if self.pooling == "top":
            scores = np.sort(scores)[-max(1, math.ceil(self.top_fraction * len(scores))) :]
        return scores.mean()

    def _judgements(self, images, pick):
        for chunk, windows in self._grids(images):
            for i, judgement in self._stitch(images.sizes[chunk], windows):
                yield slice(chunk.start + i, chunk.start + i + 1), pick(judgement)

    def _grids(self, images):
        """Yield (slice of images, their windows), about N_WINDOWS windows at a time."""
        per_image = [
            math.prod(len(starts(*side)) for side in zip(size, self.patch_size_, self.stride_))
            for size in images.sizes
        ]
        ends = np.flatnonzero(np.diff(np.cumsum(per_image) // N_WINDOWS, append=-1)) + 1
        for start, end in zip([0, *ends], ends):
            chunk = slice(start, end)
            yield chunk, images.subset(chunk).grid(self.patch_size_, self.stride_)

    def _stitch(self, sizes, windows):
        """Yield (number, Judgement) of each image, put together from the judgements of its windows."""
        weights = [profile(side) for side in self.patch_size_]
        current, total, scores = None, None, []

        # An image's windows may end within a batch, so its map is given when the next image begins.
        def finished():
            tops, lefts = (np.unique(windows.table[windows.of(current), axis]) for axis in (1, 2))
            covered = np.outer(*(cover(*a) for a in zip(sizes[current], (tops, lefts), weights)))
            maps = (total / covered).astype(np.float32)[None]
            return current, Judgement(np.array([self._pool(np.array(scores))]), maps)

        weight = np.outer(*weights)
        for rows, score, maps in self.detector_.iter_batches(windows):
            for k, (image, top, left) in enumerate(windows.table[rows]):
                if image != current:
                    if current is not None:
                        yield finished()
                    current, total, scores = image, np.zeros(sizes[image]), []
                scores.append(unlimited(-score[k]))
                part = scores[-1] if maps is None else unlimited(maps[k])
                total[top : top + weight.shape[0], left : left + weight.shape[1]] += weight * part
        yield finished()


def _is_list_of_images(X):
    """Whether X, of `read_container`, is a list of images that differ in shape."""
    return isinstance(X, list) and all(isinstance(image, np.ndarray) and image.ndim > 1 for image in X)


def _find_patch_size(patch_size, sizes):
    """Height and width of a window, as given or by default, for images of these sizes."""
    smallest = sizes.min(0)
    if patch_size is None:
        # Sides of one pixel do not count: they would make windows of 1 x 1 in a row of 1 x d.
        side = min([64, *(side for side in smallest if side > 1)])
        return tuple(int(min(side, limit)) for limit in smallest)
    patch_size = pair(patch_size, "patch_size")
    if (patch_size > smallest).any():
        raise ValueError(
            f"patch_size must fit into every training image, got {patch_size} for an image of "
            f"{tuple(map(int, smallest))} at the smallest sides; lower it, or leave it None"
        )
    return patch_size


def _find_stride(stride, patch_size):
    """Steps of windows down and to the right, given or by default."""
    if stride is None:
        return tuple(max(1, side // 2) for side in patch_size)
    stride = pair(stride, "stride")
    if any(step > side for step, side in zip(stride, patch_size)):
        raise ValueError(
            f"stride must be at most patch_size={patch_size}, or parts of an image would not be seen, "
            f"got {stride}"
        )
    return stride


def extract_patches(
    images, masks=None, *, patch_size=64, n_patches=16, channel_axis="auto", random_state=None
):
    """Random crops with their masks and labels, to test a detector before it is put in a PatchDetector.

    Parameters
    ----------
    images : array of images, or list of images of different sizes
        Images, as `PatchDetector` takes them.
    masks : (n, H, W) bool array or list of (H, W) arrays, default=None
        Masks of the anomalous pixels of the images; None means that there are none.
    patch_size : int or tuple (h, w), default=64
        Size of a crop, c in the f-AnoGAN paper.
    n_patches : int, default=16
        Number of crops of each image, K in the paper.
    channel_axis : "auto", int or None, default="auto"
        Axis of the channels, as in `PatchDetector`.
    random_state : int, RandomState or None, default=None
        Source of the random places of the crops.

    Returns
    -------
    patches : Bunch
        ``images`` (m, h, w) or (m, C, h, w); ``masks`` (m, h, w) bool; ``target`` (m,), -1 where the mask
        is not empty, else 1; ``groups`` (m,), the number of the image that a crop is from.
    """
    tensor, images = holds_tensors(images), read_container(images)
    images = images if _is_list_of_images(images) else np.asarray(images)
    stack = ImageStack(images, channel_axis, None, tensor=tensor)
    size = _find_patch_size(patch_size, stack.sizes)
    windows = stack.random_windows(size, n_patches, np.random.default_rng(draw_seed(random_state)))
    crops = windows[:]
    found = np.zeros((len(crops), *size), bool)
    if masks is not None:
        masks = [check_masks(mask) for mask in masks]
        shapes = [mask.shape for mask in masks]
        if shapes != [tuple(side) for side in stack.sizes.tolist()]:
            raise ValueError("masks must have the height and width of their images, one for each")
        for k, (i, top, left) in enumerate(windows.table):
            found[k] = masks[i][top : top + size[0], left : left + size[1]]
    return Bunch(
        images=crops[:, 0] if stack.channels == 1 else crops,
        masks=found,
        target=np.where(found.any((1, 2)), -1, 1),
        groups=windows.table[:, 0],
    )
