"""Staging: what a stage is, that three ways to it agree, and what is refused."""

import pickle

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering, KMeans, MeanShift, MiniBatchKMeans
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from toys import LinearAutoEncoder, MaplessAutoEncoder

from skanomaly import AutoEncoder, PatchDetector, _unwrap, staging
from skanomaly.plotting import StageDisplay
from skanomaly.staging import AnomalyStager, CentroidScorer, CentroidStager, ResidualTransformer
from skanomaly.testing import SliceOnly, make_images, tiny


def inner(**parameters):
    return tiny(AutoEncoder, **parameters)


@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
@parametrize_with_checks(
    [
        ResidualTransformer(inner()),
        ResidualTransformer(inner(), pooling=3),
        CentroidScorer(),
        CentroidStager(random_state=0),
        CentroidStager(
            GaussianMixture(covariance_type="spherical", init_params="random_from_data", random_state=0)
        ),
        AnomalyStager(inner(contamination=0.5), random_state=0),
    ]
)
def test_scikit_learn(estimator, check):
    check(estimator)


def planted(n=30):
    """Images with a bright square that grows with the stage, normal ones without; and stages 0, 1, 2"""
    rng = np.random.default_rng(0)
    stages = np.repeat([0, 1, 2], n)
    images = rng.normal(100, 4, (len(stages), 16, 16))
    for image, stage in zip(images, stages):
        side = (0, 7, 8)[stage]
        image[2 : 2 + side, 2 : 2 + side] += 60
    return images.clip(0, 255).astype(np.uint8), stages


def fitted(images, stages):
    return inner(max_epochs=5, intensity_range=(0, 255)).fit(images[stages == 0])


@pytest.fixture(scope="module")
def sick():
    images, stages = planted()
    return fitted(images, stages), images, stages


def literal(detector, n_stages=2):
    """The pipeline of the paper, step by step."""
    return Pipeline(
        [
            ("residual", ResidualTransformer(FrozenEstimator(detector))),
            ("kmeans", KMeans(n_stages, n_init=20, random_state=0)),
            ("score", CentroidScorer()),
        ]
    )


def test_three_ways_agree(sick):
    detector, images, stages = sick
    ill, found = images[stages > 0], stages[stages > 0]
    A = -detector.score_samples(ill)
    three = literal(detector).fit(ill, score__anomaly_score=A)
    two = make_pipeline(ResidualTransformer(FrozenEstimator(detector)), CentroidStager(random_state=0)).fit(
        ill
    )
    y = np.where(stages > 0, -1, 1)
    one = AnomalyStager(FrozenEstimator(detector), random_state=0).fit(images, y)
    assert_array_equal(three.predict(ill), found)
    assert_array_equal(two.predict(ill), found)
    # Which images are anomalous is the detector's to say; their stages are the same.
    assert_array_equal(
        staging.CentroidStager.predict(one.pipeline_[-1], one.pipeline_[0].transform(ill)), found
    )
    severities = [staging.severity(three, ill), staging.severity(two, ill), one.severity(ill)]
    assert_allclose(severities[1], severities[0], atol=1e-3)
    assert_allclose(severities[2], severities[1], atol=1e-6)
    assert three.score(ill) == pytest.approx(two.score(ill), abs=1e-4)


def test_a_stage_is_as_severe_as_its_members_and_its_centroid_is_large(sick):
    detector, images, stages = sick
    ill = images[stages > 0]
    R = ResidualTransformer(FrozenEstimator(detector)).fit(ill).transform(ill)
    stager = CentroidStager(random_state=0).fit(R)
    assert_allclose(stager.severity_, [R[stages[stages > 0] == k].mean() for k in (1, 2)], rtol=1e-5)
    assert_allclose(np.abs(stager.cluster_centers_).mean(1), stager.severity_, rtol=1e-4)
    assert (np.diff(stager.severity_) > 0).all()


def test_residuals(sick):
    detector, images, _ = sick
    transformer = ResidualTransformer(FrozenEstimator(detector)).fit(images)
    R = transformer.transform(images)
    expected = np.abs(images.astype(float) - detector.reconstruct(images))
    assert_allclose(R, expected.reshape(len(images), -1), atol=1e-4)
    assert R.shape[1] == len(transformer.get_feature_names_out()) == 256
    pooled = ResidualTransformer(FrozenEstimator(detector), pooling=5).fit_transform(images)
    assert pooled.shape[1] == 16
    assert_allclose(pooled[:, 0], expected[:, :5, :5].mean((1, 2)), rtol=1e-4)
    assert_allclose(pooled[:, -1], expected[:, 15:, 15:].mean((1, 2)), rtol=1e-4)
    transformer.set_output(transform="pandas")
    assert list(transformer.transform(images[:2]).columns) == list(transformer.get_feature_names_out())


def test_residuals_of_colours_and_of_what_does_not_reconstruct():
    colours = make_images((6, 8, 8, 3))
    R = ResidualTransformer(inner()).fit_transform(colours)
    assert R.shape == (6, 3 * 64)
    grey = make_images((6, 8, 8))

    class MapsOnly(LinearAutoEncoder):
        __doc__ = LinearAutoEncoder.__doc__
        reconstruct = property()

    detector = tiny(MapsOnly).fit(grey)
    R = ResidualTransformer(FrozenEstimator(detector)).fit_transform(grey)
    assert_allclose(R, detector.anomaly_map(grey).reshape(6, -1))
    with pytest.raises(TypeError, match="has no anomaly map"):
        ResidualTransformer(FrozenEstimator(tiny(MaplessAutoEncoder).fit(grey))).fit_transform(grey)


def test_known_anomalies_are_not_fitted_to():
    images, stages = planted(8)
    y = np.where(stages > 0, -1, 1)
    whole = ResidualTransformer(inner()).fit(images, y)
    normal = ResidualTransformer(inner()).fit(images[y == 1])
    assert_array_equal(whole.transform(images), normal.transform(images))


@pytest.mark.parametrize("n_stages", [2, 3, 4])
def test_stages_do_not_depend_on_the_order_of_rows(n_stages):
    rng = np.random.default_rng(0)
    R = rng.uniform(size=(60, 12))  # without clusters: what is found depends on where it is begun
    order = rng.permutation(60)
    stager = CentroidStager(n_stages=n_stages, random_state=0).fit(R)
    other = CentroidStager(n_stages=n_stages, random_state=0).fit(R[order])
    assert_array_equal(stager.predict(R), other.predict(R))
    assert set(stager.predict(R)) == set(range(1, n_stages + 1))
    assert_allclose(stager.severity(R), other.severity(R), atol=1e-6)
    assert stager.score(R) == pytest.approx(other.score(R))


def test_scores_given_order_the_stages():
    R = np.concatenate([np.full((5, 4), 1.0), np.full((5, 4), 3.0)])
    R += np.random.default_rng(0).normal(0, 0.1, R.shape)
    y, score = np.r_[1, -np.ones(9)], R.mean(1)
    stager = CentroidStager(random_state=0)
    assert_array_equal(stager.fit(R, anomaly_score=-score).predict(R), np.repeat([2, 1], 5))
    # Of normal rows neither stager nor scorer counts the scores, however extreme.
    score[0] = 1e9
    assert_array_equal(stager.fit(R, y, anomaly_score=score).predict(R), np.repeat([1, 2], 5))
    D = KMeans(2, n_init=5, random_state=0).fit(R).transform(R)
    assert_array_equal(CentroidScorer().fit(D, y, anomaly_score=score).predict(D), np.repeat([1, 2], 5))


def test_a_frozen_clusterer_is_used_as_it_is():
    R = np.abs(np.random.default_rng(0).normal(size=(20, 3)))
    kmeans = KMeans(2, random_state=0).fit(R)
    stager = CentroidStager(FrozenEstimator(kmeans)).fit(R[:15])
    assert_allclose(np.sort(stager.cluster_centers_, 0), np.sort(kmeans.cluster_centers_, 0))


@pytest.mark.parametrize("reflect", [False, True])
def test_distances_alone_cannot_order(reflect):
    """r -> M - r leaves all distances as they are, and turns the order round: the scores must say."""
    R = np.concatenate([np.full((5, 4), 1.0), np.full((5, 4), 3.0)])
    R += np.random.default_rng(0).normal(0, 0.1, R.shape)
    R = 4 - R if reflect else R
    kmeans = KMeans(2, n_init=5, random_state=0).fit(R)
    D = kmeans.transform(R)
    stages = CentroidScorer().fit(D, anomaly_score=R.mean(1)).predict(D)
    assert_array_equal(stages, np.repeat([2, 1] if reflect else [1, 2], 5))


def test_severity_is_the_projection_between_two_centroids():
    rng = np.random.default_rng(0)
    R = np.abs(np.concatenate([rng.normal(1, 0.3, (20, 6)), rng.normal(3, 0.3, (20, 6))]))
    stager = CentroidStager(random_state=0).fit(R)
    low, high = stager.cluster_centers_
    expected = (R - low) @ (high - low) / ((high - low) ** 2).sum()
    assert_allclose(stager.severity(R), expected, atol=1e-9)
    assert_allclose(stager.severity([low, high, 2 * high - low]), [0, 1, 2], atol=1e-9)


def test_severity_of_three_stages_goes_from_0_to_2():
    rng = np.random.default_rng(0)
    R = np.concatenate([rng.normal(mean, 0.05, (20, 3)) for mean in (1, 2, 4)])
    stager = CentroidStager(n_stages=3, random_state=0).fit(R)
    line = np.linspace(0.5, 5, 200)[:, None].repeat(3, 1)
    severity = stager.severity(line)
    assert (np.diff(severity) >= -1e-9).all()
    assert_allclose(stager.severity(stager.cluster_centers_), [0, 1, 2], atol=1e-6)
    assert severity[0] < 0
    assert severity[-1] > 2


def test_only_anomalous_rows_are_clustered(sick):
    """With the normal ones among them, K-means finds normal against ill."""
    detector, images, stages = sick
    R = ResidualTransformer(FrozenEstimator(detector)).fit(images).transform(images)
    y, ill = np.where(stages > 0, -1, 1), stages > 0
    right = CentroidStager(random_state=0).fit(R, y)
    assert_array_equal(right.predict(R[ill]), stages[ill])
    wrong = CentroidStager(random_state=0).fit(R)
    assert np.mean(wrong.predict(R[ill]) == stages[ill]) <= 0.5
    assert_allclose(right.severity_, CentroidStager(random_state=0).fit(R[ill]).severity_)
    assert right.score(R, y) == right.score(R[ill])


def test_order_by_labels_where_there_are_no_scores(sick):
    detector, images, stages = sick
    y, ill = np.where(stages > 0, -1, 1), stages > 0
    pipeline = literal(detector).fit(images, y, kmeans__sample_weight=(y == -1).astype(float))
    assert_array_equal(pipeline.predict(images[ill]), stages[ill])
    D = pipeline[:-1].transform(images)
    distances = D[y == 1].mean(0)
    assert_allclose(pipeline[-1].severity_, np.sort(distances), rtol=1e-5)


def test_scores_by_metadata_routing(sick):
    detector, images, stages = sick
    ill = images[stages > 0]
    A = -detector.score_samples(ill)
    plain = literal(detector).fit(ill, score__anomaly_score=A)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = literal(detector)
        routed.set_params(score=CentroidScorer().set_fit_request(anomaly_score=True))
        routed.fit(ill, anomaly_score=A)
        assert_array_equal(routed.predict(ill), plain.predict(ill))


@pytest.mark.parametrize("factor", [0.01, 1000])
def test_the_score_does_not_depend_on_the_scale(factor):
    R = np.abs(np.random.default_rng(0).normal(1, 1, (40, 5)))
    expected = CentroidStager(random_state=0).fit(R).score(R)
    assert CentroidStager(random_state=0).fit(factor * R).score(factor * R) == pytest.approx(expected)
    apart = np.concatenate([np.full((9, 5), 1.0), np.full((9, 5), 9.0)]) + R[:18] / 100
    assert CentroidStager(random_state=0).fit(apart).score(apart) > 0.99


@pytest.mark.parametrize(
    "clusterer",
    [
        KMeans(random_state=0),
        MiniBatchKMeans(random_state=0, batch_size=64),
        GaussianMixture(random_state=0, covariance_type="diag"),
    ],
)
def test_other_clusterers(clusterer):
    rng = np.random.default_rng(0)
    R = np.abs(np.concatenate([rng.normal(mean, 0.2, (30, 4)) for mean in (1, 5, 9)]))
    stager = CentroidStager(clusterer, n_stages=3).fit(R)
    assert_array_equal(stager.predict(R), np.repeat([1, 2, 3], 30))
    assert_allclose(stager.severity_, [1, 5, 9], atol=0.2)


def test_the_stager_of_images(sick):
    _, images, stages = sick
    y = np.where(stages > 0, -1, 1)
    stager = AnomalyStager(inner(max_epochs=5, intensity_range=(0, 255)), random_state=0)
    stager.fit(images, y)
    assert_array_equal(stager.predict(images)[stages == 2], 2)
    assert set(stager.predict(images)[stages == 0]) <= {0, 1}
    assert 0.85 < np.mean(stager.predict(images)[stages == 0] == 0) < 0.95, "contamination"
    copy = pickle.loads(pickle.dumps(stager))
    assert_array_equal(copy.severity(images), stager.severity(images))
    assert clone(stager).get_params()["detector__max_epochs"] == 5
    assert list(stager.pipeline_.named_steps) == ["residual", "stager"]
    assert stager.score(images, y) == stager.pipeline_.score(images[y == -1])


def test_without_labels_what_the_detector_flags_is_staged():
    images, stages = planted(20)
    stager = AnomalyStager(inner(contamination=0.3, intensity_range=(0, 255)), random_state=0).fit(images)
    flagged = stager.detector_.predict(images) == -1
    assert flagged.sum() == 18
    assert_array_equal(stager.predict(images) > 0, flagged)


def test_a_search_chooses_detector_and_number_of_stages():
    images, stages = planted(12)
    y = np.where(stages > 0, -1, 1)
    search = GridSearchCV(
        AnomalyStager(inner(intensity_range=(0, 255)), random_state=0),
        {"detector__latent_size": [2, 4], "n_stages": [2, 3]},
        cv=StratifiedKFold(2),
        error_score="raise",
    ).fit(images, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert set(search.predict(images)) <= {0, 1, 2, 3}
    assert staging.severity(search, images).shape == (36,)


def test_a_pipeline_with_memory_fits_the_detector_once(tmp_path, monkeypatch):
    images, _ = planted(8)
    fits = []
    fit = AutoEncoder._fit
    monkeypatch.setattr(AutoEncoder, "_fit", lambda self, X, y: fits.append(1) or fit(self, X, y))
    pipeline = Pipeline(
        [("residual", ResidualTransformer(inner())), ("stager", CentroidStager(random_state=0))],
        memory=str(tmp_path),
    )
    for n_stages in (2, 3):
        clone(pipeline).set_params(stager__n_stages=n_stages).fit(images)
    assert len(fits) == 1


def test_a_pipeline_that_ends_in_a_detector(sick):
    detector, images, _ = sick
    half = FunctionTransformer(lambda X: X[:, ::2, ::2])
    inside = make_pipeline(half, inner()).fit(images)
    R = ResidualTransformer(FrozenEstimator(inside)).fit_transform(images)
    expected = np.abs(images[:, ::2, ::2] - _unwrap.reconstruct(inside, images))
    assert_allclose(R, expected.reshape(len(R), -1), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda R: CentroidScorer().fit(R),
            ValueError,
            "pass the anomaly scores of the rows as anomaly_score",
        ),
        (lambda R: CentroidScorer().fit(R, np.full(5, -1)), ValueError, "y holds no normal rows"),
        (
            lambda R: CentroidScorer().fit(R, anomaly_score=[1, 2]),
            ValueError,
            "inconsistent numbers of samples",
        ),
        (
            lambda R: CentroidScorer().fit(R + [0, 9, 9], anomaly_score=R[:, 0]),
            ValueError,
            "2 of 3 clusters have no member; ask for fewer stages",
        ),
        (lambda R: CentroidStager(n_stages=6).fit(R), ValueError, "minimum of 6 is required"),
        (lambda R: CentroidStager(n_stages=1).fit(R), ValueError, "'n_stages' parameter of CentroidStager"),
        (
            lambda R: CentroidStager(n_stages=3).fit(R, [-1, -1, 1, 1, 1]),
            ValueError,
            "n_stages=3 needs as many anomalous rows .* got 2",
        ),
        (
            lambda R: CentroidStager(AgglomerativeClustering()).fit(R),
            TypeError,
            "must have cluster_centers_ or means_ once fitted, which AgglomerativeClustering has not",
        ),
        (lambda R: CentroidStager().predict(R), NotFittedError, "not fitted yet"),
        (
            lambda R: ResidualTransformer(FrozenEstimator(inner())).fit(R),
            NotFittedError,
            "not fitted yet",
        ),
        (
            lambda R: AnomalyStager(inner()).fit(make_images((5, 8, 8)), [-1, -1, -1, -1, 1]),
            ValueError,
            "y leaves 1 of 5 images to train on",
        ),
        (
            lambda R: AnomalyStager(inner(), n_stages=3).fit(make_images((20, 8, 8))),
            ValueError,
            "n_stages=3 needs as many anomalous images at least, got 2; give more, marked by -1 in y",
        ),
        (
            lambda R: CentroidStager().fit(R, anomaly_score=[1, 2, 3, np.nan, 5]),
            ValueError,
            "anomaly_score contains NaN",
        ),
        (
            lambda R: CentroidStager(MeanShift(bandwidth=1e-3)).fit(R),
            ValueError,
            "the clusterer found 5 clusters for n_stages=2",
        ),
        (
            lambda R: AnomalyStager(FrozenEstimator(inner().fit(R))).fit(R, [-1, -1]),
            ValueError,
            "inconsistent numbers of samples",
        ),
        (lambda R: ResidualTransformer(inner(), pooling=0).fit(R), ValueError, "'pooling' parameter"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make(np.abs(np.random.default_rng(0).normal(size=(5, 3))))


def test_too_few_known_anomalies_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(AutoEncoder, "_fit", lambda self, X, y: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="n_stages=3 needs as many anomalous images at least, got 2"):
        AnomalyStager(inner(), n_stages=3).fit(make_images((20, 8, 8)), [-1] * 2 + [1] * 18)


def test_a_fit_that_fails_leaves_everything_as_it_was():
    images = make_images((20, 8, 8))
    stager = AnomalyStager(inner(), n_stages=3)
    with pytest.raises(ValueError, match="n_stages=3 needs"):
        stager.fit(images)
    with pytest.raises(NotFittedError):
        stager.predict(images)
    stager.set_params(n_stages=2).fit(images)
    before = stager.severity(images)
    with pytest.raises(ValueError, match="n_stages=9 needs"):
        stager.set_params(n_stages=9).fit(images[:, ::2, ::2])
    assert_array_equal(stager.severity(images), before)


def test_lazy_images_and_output_set_before(sick):
    detector, images, stages = sick
    y = np.where(stages > 0, -1, 1)
    stager = AnomalyStager(FrozenEstimator(detector), random_state=0)
    assert_array_equal(
        clone(stager).fit(SliceOnly(images), y).severity(images),
        clone(stager).fit(images, y).severity(images),
    )
    with sklearn.config_context(transform_output="pandas"):
        assert_allclose(
            clone(stager).fit(images, y).severity(images), clone(stager).fit(images, y).severity(images)
        )
    transformer = ResidualTransformer(FrozenEstimator(detector)).set_output(transform="pandas")
    assert transformer.fit_transform(images).shape == (len(images), 256)


def test_patches_can_be_staged(sick):
    _, images, stages = sick
    patches = tiny(PatchDetector, patch_size=8)
    stager = AnomalyStager(patches, random_state=0).fit(images, np.where(stages > 0, -1, 1))
    assert StageDisplay.from_estimator(stager, images[-9:]).axes_.size
    with pytest.raises(ValueError, match="images must be of one size"):
        ResidualTransformer(FrozenEstimator(stager.detector_)).fit([images[0], images[1, :12]])


def test_display(sick):
    detector, images, stages = sick
    stager = AnomalyStager(FrozenEstimator(detector), random_state=0).fit(images, np.where(stages > 0, -1, 1))
    display = StageDisplay.from_estimator(stager, images, n_images=4)
    assert len(display.axes_) == 2 * 5 + 1
    drawn = display.axes_[0].images[0].get_array()
    assert_allclose(drawn, detector.anomaly_map(images)[stager.predict(images) == 1].mean(0), rtol=1e-5)
    titles = [float(ax.get_title()) for ax in display.axes_[6:10]]
    assert titles == sorted(titles)
    with pytest.raises(ValueError, match="no image has a stage"):
        StageDisplay(images, images, np.zeros(len(images)), stages).plot()
