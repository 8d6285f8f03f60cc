"""Classical detectors of patches, behind descriptors of the patches around pixels.

Descriptors are those of the teacher of UninformedStudents, or features of patches by a frozen backbone. They
are made for every `step`-th pixel of a row and of a column. Scores of the pixels between are interpolated.
"""

from functools import partial

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skanomaly import UninformedStudents, _comparison
from skanomaly.detectors.uninformed_students import in_parts
from skanomaly.features import ImageFeatures

N_IMAGES = 32  # described at a time: descriptors of all patches of many images would fill the memory
N_WORDS = 10
N_NEAREST = 5  # words whose mean distance is the score of a patch


def distance(rows, n):
    """Function of rows: mean distance to the nearest `n` of other rows."""
    index = NearestNeighbors(n_neighbors=n).fit(rows)
    return lambda x: index.kneighbors(x)[0].mean(1)


def words(rows, seed):
    return KMeans(N_WORDS, random_state=seed).fit(rows).cluster_centers_


def one_class(rows, seed):
    machine = OneClassSVM().fit(rows)
    return lambda x: -machine.score_samples(x)


#: Functions of normal rows and a seed. They return a function of rows, whose value is higher for worse ones.
HEADS = {
    "1-NN": lambda rows, seed: distance(rows, 1),
    "OC-SVM": one_class,
    "k-means": lambda rows, seed: distance(words(rows, seed), 1),
    "dictionary": lambda rows, seed: distance(words(rows, seed), N_NEAREST),
}


class PatchHead(BaseEstimator):
    """Head of `HEADS` on principal components of standardised descriptors, of 95 % of their variance.

    Parameters
    ----------
    head : str
        Key of `HEADS`.
    describer : estimator
        What describes patches; the subclass says how.
    n_rows : int
        Number of patches of the normal images from which the head learns, at random places.
    step : int
        Pixels from one described patch to the next.
    """

    def __init__(self, head, describer, *, n_rows=10_000, step=4, random_state=None):
        self.head = head
        self.describer = describer
        self.n_rows = n_rows
        self.step = step
        self.random_state = random_state

    def descriptors(self, images):
        """Yield descriptors (n, h, w, d) of the patches of some images after others."""
        for start in range(0, len(images), N_IMAGES):
            yield self.describe(images[start : start + N_IMAGES])

    def sample(self, images):
        """Descriptors of about `n_rows` patches, as many of each image."""
        rng, kept = np.random.default_rng(self.random_state), []
        for described in self.descriptors(images):
            rows = described.reshape(len(described), -1, described.shape[-1])
            places = rng.integers(rows.shape[1], size=(len(rows), -(-self.n_rows // len(images))))
            kept.append(np.take_along_axis(rows, places[..., None], axis=1))
        return np.concatenate(kept).reshape(-1, rows.shape[-1])

    def learn(self, rows):
        """Learn from descriptors (m, d)."""
        reduce = make_pipeline(StandardScaler(), PCA(0.95, random_state=self.random_state))
        judge = HEADS[self.head](reduce.fit_transform(rows), self.random_state)
        self.judge_ = lambda rows: judge(reduce.transform(rows))

    def maps(self, described, size):
        """Maps (n, *size) of images from their descriptors (n, h, w, d)."""
        scores = self.judge_(described.reshape(-1, described.shape[-1])).reshape(described.shape[:3])
        rows, columns = map(self.weights, size, scores.shape[1:])
        return rows @ scores @ columns.T

    def weights(self, n_pixels, n_described):
        """Matrix (n_pixels, n_described) that interpolates, and repeats the outermost values."""
        places = self.first + self.step * np.arange(n_described)
        pixels = np.arange(n_pixels)
        return np.stack([np.interp(pixels, places, one) for one in np.eye(n_described)], axis=1)


class TeacherHead(PatchHead):
    """Head on the descriptors by the first teacher of an UninformedStudents."""

    first = 0

    def fit(self, images):
        self.detector_ = clone(self.describer).fit(images)
        return self

    def describe(self, images):
        (scale, *_) = self.detector_.network_.scales.values()

        def describe(x):
            described = scale.teacher.at_each_pixel(x)[..., :: self.step, :: self.step]
            return (described.permute(0, 2, 3, 1),)

        parts = self.detector_._run(partial(in_parts, describe), self.detector_._open(images))
        return np.concatenate([described for _, (described,) in parts])


class BackboneHead(PatchHead):
    """Head on the features, averaged over the patch, by an ImageFeatures. Patches lie within the images."""

    def __init__(self, head, describer, *, patch_size=16, n_rows=10_000, step=4, random_state=None):
        super().__init__(head, describer, n_rows=n_rows, step=step, random_state=random_state)
        self.patch_size = patch_size

    @property
    def first(self):
        return (self.patch_size - 1) / 2

    def fit(self, images):
        # The range of whole images: patches might miss an end of it.
        layout = {"channel_axis": 1, "intensity_range": (float(images.min()), float(images.max()))}
        self.features_ = clone(self.describer).set_params(grid=1, **layout)
        self.features_.fit(self.patches(images[:N_IMAGES]).reshape(-1, *self.shape(images)))
        return self

    def shape(self, images):
        return np.prod(images.shape[3:], dtype=int), self.patch_size, self.patch_size

    def patches(self, images):
        """Patches (n, h, w, c, side, side)."""
        images = images.reshape(*images.shape[:3], -1)
        windows = np.lib.stride_tricks.sliding_window_view(images, [self.patch_size] * 2, axis=(1, 2))
        return windows[:, :: self.step, :: self.step]

    def describe(self, images):
        patches = self.patches(images)
        rows = self.features_.transform(patches.reshape(-1, *self.shape(images)))
        return rows.reshape(*patches.shape[:3], -1)


_comparison.OTHERS |= {"TeacherHead": TeacherHead, "BackboneHead": BackboneHead}


def teacher_head(head, random_state):
    """TeacherHead with a teacher of p = 65. Its students, which have no part in this, learn for one epoch."""
    teacher = UninformedStudents(patch_sizes=(65,), n_students=2, max_epochs=1, random_state=random_state)
    return TeacherHead(head, teacher, step=2, random_state=random_state)


def backbone_head(head, random_state):
    """BackboneHead with the last features of EfficientNet-Lite0, of patches enlarged to 32 pixels."""
    describer = ImageFeatures(layers=(6,), input_size=32, random_state=random_state)
    return BackboneHead(head, describer, random_state=random_state)
