"""DDAD: discrepancies by hand, who sees which images, who moves, and that it learns."""

from functools import partial

import numpy as np
import pytest
import torch
from foreign import check_learns
from numpy.testing import assert_allclose
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from skorch.callbacks import EarlyStopping
from steps import assert_descends, run_step, watch_stages
from torch import nn
from torch.nn import functional as F

from skanomaly import DDAD
from skanomaly._losses import focal_loss, likelihood_error, squared_error
from skanomaly._random import seeded
from skanomaly.detectors.ddad import (
    BACKBONES,
    RAW,
    DDADNetwork,
    Refinement,
    RefinementNetwork,
)
from skanomaly.labels import LabelWarning
from skanomaly.persistence import load, save
from skanomaly.synthesis import SYNTHESES
from skanomaly.testing import make_images, tiny
from skanomaly.transforms.defects import foreign_patches

Y = np.repeat([1, 0, -1], (6, 4, 2))
refining = partial(tiny, DDAD, refine=True)
# One epoch of one step leaves the direction to chance; a test of its own is about it.
pytestmark = pytest.mark.filterwarnings("ignore:ASR-Net points the wrong way")


class Shifted(nn.Module):
    """The image plus a number."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x):
        return x + self.by


def network(shifts, *, dual=True, ddof=1, log_variances=None, refinement_width=None):
    """Members that add these shifts: those of the NDM first."""
    members = iter([Shifted(by) for by in shifts])
    k = len(shifts) // (1 + dual)

    def predict(member, x):
        if log_variances is None:
            return member(x), None
        return member(x), torch.full_like(x, log_variances[member.by.item()])

    options = {"n_members": k, "dual": dual, "refinement_width": refinement_width, "ddof": ddof}
    return DDADNetwork(lambda: next(members), predict, **options)


def test_discrepancies_by_hand():
    x = torch.rand(2, 3, 4, 5)
    maps = network([0.1, 0.3, 0.5, 0.9]).discrepancies(x)
    assert_allclose(maps["rec"].detach(), 0.2**2, rtol=1e-4)
    assert_allclose(maps["intra"].detach(), 0.2 / np.sqrt(2), rtol=1e-4, err_msg="K = 2: |a - b| / sqrt 2")
    assert_allclose(maps["inter"].detach(), 0.5, rtol=1e-4)
    assert maps["rec"].shape == (2, 4, 5)
    population = network([0.1, 0.3, 0.5, 0.9], ddof=0).discrepancies(x)["intra"]
    assert_allclose(population.detach(), 0.1, rtol=1e-4)
    assert set(network([0.1, 0.3], dual=False).discrepancies(x)) == {"rec", "intra"}


def test_discrepancies_count_by_the_deviation_of_the_normative_ensemble():
    log_variances = {np.float32(by).item(): value for by, value in ((0.1, 0.0), (0.3, np.log(7.0)))}
    log_variances |= {np.float32(by).item(): 50.0 for by in (0.5, 0.9)}
    x = torch.rand(2, 1, 4, 5)
    maps = network([0.1, 0.3, 0.5, 0.9], log_variances=log_variances).discrepancies(x)
    deviation = np.sqrt((1 + 7) / 2)  # root of the mean variance
    assert_allclose(maps["rec"].detach(), 0.2**2 / deviation**2, rtol=1e-4)
    assert_allclose(maps["intra"].detach(), 0.2 / np.sqrt(2) / deviation, rtol=1e-4)
    assert_allclose(maps["inter"].detach(), 0.5 / deviation, rtol=1e-4)


def test_equals_do_not_disagree():
    maps = network([0.2] * 6).discrepancies(torch.rand(2, 1, 4, 4))
    assert_allclose(maps["intra"].detach(), 0, atol=1e-6)
    assert_allclose(maps["inter"].detach(), 0, atol=1e-6)


def test_bias_and_variance():
    """The mean error of the members is that of their mean plus their variance, pixel by pixel."""
    with seeded(0):
        detector = tiny(DDAD, backbone="ae", n_members=4, ddof=0, refine=False).fit(make_images())
        x = torch.rand(3, 1, 16, 16) * 2 - 1
    net = detector.network_.eval()
    with torch.no_grad():
        maps = net.discrepancies(x)
        errors = torch.stack([(member(x) - x).square()[:, 0] for member in net.ndm]).mean(0)
    assert_allclose(errors, maps["rec"] + maps["intra"].square(), rtol=1e-4, atol=1e-6)


def test_focal_loss():
    logits, masks = torch.randn(3, 2, 5, 5).double(), torch.rand(3, 5, 5) > 0.5
    assert_allclose(focal_loss(logits, masks, gamma=0.0), F.cross_entropy(logits, masks.long()), rtol=1e-12)
    assert_allclose(focal_loss(torch.zeros(1, 2, 4, 4), masks[:1, :4, :4]), 0.25 * np.log(2), rtol=1e-6)
    p = logits.softmax(1).gather(1, masks[:, None].long())
    assert_allclose(focal_loss(logits, masks), (-((1 - p) ** 2) * p.log()).mean(), rtol=1e-10)


@pytest.mark.parametrize(("backbone", "n"), [("ae", 4_487_248), ("memae", 4_487_648), ("aeu", 4_487_504)])
def test_sizes_are_those_of_the_public_code(backbone, n):
    member = BACKBONES[backbone].build((1, 64, 64), 16, hidden_size=2048, width=16)
    assert sum(value.numel() for value in member.parameters()) == n
    assert sum(value.numel() for value in RefinementNetwork(2, width=128).parameters()) == 152_834


def test_who_sees_which_images(monkeypatch):
    seen = {}

    def look(stage, training, network, images, **options):
        seen[stage] = np.arange(len(Y))[images.rows].tolist()

    watch_stages(monkeypatch, DDAD, look)
    X = make_images((12, 16, 16))
    detector = refining().fit(X, Y)
    normal, known = list(range(6)), list(range(10))
    assert seen == {
        "ndm_0": normal,
        "ndm_1": normal,
        "udm_0": known,
        "udm_1": known,
        "refinement": normal,
    }
    assert detector.n_unlabelled_ == 4
    plain = tiny(DDAD, score_component="rec", refine=False).fit(X, Y)
    scores = plain.score_samples(X[:6])
    assert_allclose(plain.offset_, np.percentile(scores, 10), rtol=1e-6, err_msg="of the normal images")
    alone = refining().fit(X[:6])
    assert alone.n_unlabelled_ == 0
    assert alone.network_.udm is None
    assert set(alone.score_components(X)) == {"rec", "intra", "refined_intra"}
    first, second = (tiny(DDAD).fit(X[:6], y).score_samples(X) for y in (None, np.ones(6)))
    assert np.array_equal(first, second)
    with pytest.warns(LabelWarning, match="learned as normal"):
        other = tiny(DDAD).fit(X[:6], np.arange(1, 7)).score_samples(X)
    assert np.array_equal(first, other), "other codes are ignored"


def test_as_much_of_either_is_held_out(monkeypatch):
    seen = {}

    def look(stage, training, network, images, **options):
        seen[stage] = [images.rows.tolist(), images.held_out.rows.tolist()]

    watch_stages(monkeypatch, DDAD, look)
    y = np.repeat([1, 0, -1], (9, 6, 3))
    detector = refining(validation_fraction=1 / 3, callbacks=[EarlyStopping()])
    detector.fit(make_images((18, 16, 16)), y)
    for stage in ("ndm_0", "ndm_1", "refinement"):
        train, held_out = seen[stage]
        assert sorted(train + held_out) == list(range(9)), stage
        assert len(held_out) == 3
    train, held_out = seen["udm_0"]
    assert sorted(train + held_out) == list(range(15))
    assert sorted(y[held_out]) == [0, 0, 1, 1, 1]
    assert all("valid_loss" in history[-1] for history in detector.history_.values())


def test_the_refinement_is_validated_with_the_same_patches():
    detector = refining().fit(make_images((12, 16, 16)), Y)
    training = Refinement(detector.network_, stage="s")
    x = torch.rand(4, 1, 16, 16)
    assert training.validate(detector.network_, x) == training.validate(detector.network_, x)


def test_members_differ():
    net = tiny(DDAD, n_members=3).fit(make_images((12, 16, 16)), Y).network_
    first = [member.encoder.down[0].weight for member in (*net.ndm, *net.udm)]
    assert all(not torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


def test_refinement_moves_itself_alone():
    with seeded(0):
        net = tiny(DDAD, refine=True)
        net.n_unlabelled_ = 4
        net = net._build((1, 16, 16))
        x = torch.rand(8, 1, 16, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training = Refinement(net, stage="refinement", batch_size=8)
    training.initialize()
    training.totals_, training.batch_size_ = {}, 8
    for part in (net.ndm, net.udm):
        part.eval()
    with seeded(0):
        training.step(net, x)
    after = net.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"refinements"}
    for name in "intra", "dual":
        weight = f"refinements.{name}.0.weight"
        assert not torch.equal(before[weight], after[weight])


def both_refinements():
    """Members of shifts in proportion to the image, with both refinements."""
    with seeded(0):
        net = network([0.1, 0.3, 0.5, 0.9], refinement_width=4)
    net.predict = lambda member, x: (x * (1 + member.by), None)
    return net


def half_mixed(x):
    return foreign_patches(x, probability=0.5)[:2]


def refinement_loss_by_hand(net, x, make=half_mixed):
    mixed, masks = make(x)
    maps = {"intra": 0.2 * mixed.abs() / np.sqrt(2), "inter": 0.5 * mixed.abs()}
    inputs = {"intra": maps["intra"], "dual": torch.cat([maps["inter"], maps["intra"]], dim=1)}
    total = 0.0
    for name, given in inputs.items():
        p = net.refinements[name](given).softmax(1)
        p = torch.where(masks, p[:, 1], p[:, 0])
        total = total - ((1 - p) ** 2 * p.log()).mean()
    return total


def test_a_step_of_the_refinement_by_hand():
    with seeded(1):
        x = torch.rand(8, 1, 16, 16)
    losses, moved = run_step(Refinement, both_refinements(), x)
    assert moved == {"refinements"}
    with seeded(0), torch.no_grad():
        assert_allclose(
            losses["refinement_loss"], refinement_loss_by_hand(both_refinements().train(), x), rtol=1e-4
        )
    assert_descends(Refinement, both_refinements(), x, refinement_loss_by_hand, {"refinements"})


def test_a_synthesis_of_the_refinement_by_hand():
    """It gets images in [0, 1] and the next image of the batch, and changes half of the images."""
    with seeded(1):
        x = 2 * torch.rand(64, 1, 16, 16) - 1
    seen = []

    def darken(images, sources, generator):
        seen.append((images, sources))
        masks = torch.zeros_like(images, dtype=torch.bool)
        masks[..., :8] = True
        return torch.where(masks, images / 2, images), masks, masks.float()

    training = Refinement(both_refinements(), stage="test", synthesis=darken)
    with seeded(0):
        made, masks = training.make(x)
    ((images, sources),) = seen
    assert_allclose(images, (x + 1) / 2)
    assert_allclose(sources, torch.cat([images[1:], images[:1]]))
    changed = masks.any((1, 2))
    assert 20 < changed.sum() < 44
    assert torch.equal(masks, changed[:, None, None] & (torch.arange(16) < 8).expand(16, 16))
    assert_allclose(made, torch.where(masks[:, None], (x - 1) / 2, x), atol=1e-6)
    losses, _ = run_step(Refinement, both_refinements(), x, synthesis=darken)
    with seeded(0), torch.no_grad():
        expected = refinement_loss_by_hand(both_refinements().train(), x, training.make)
    assert_allclose(losses["refinement_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SYNTHESES))
def test_syntheses_of_the_refinement(name):
    X = make_images((12, 16, 16))
    found = [refining(refinement_synthesis=s).fit(X, Y) for s in (None, name, SYNTHESES[name])]
    for detector in found:
        assert set(detector.refinement_direction_) == {"intra", "dual"}
        assert all(-1 <= value <= 1 for value in detector.refinement_direction_.values())
    refined = [detector.score_components(X)["refined_dual"] for detector in found]
    assert not np.array_equal(refined[0], refined[1])
    assert np.array_equal(refined[1], refined[2])


def test_members_stay_as_they_are_while_refinements_learn(monkeypatch):
    before = {}

    def look(stage, training, network, images, **options):
        if stage == "refinement":
            before.update({name: value.clone() for name, value in network.state_dict().items()})

    watch_stages(monkeypatch, DDAD, look)
    after = refining().fit(make_images((12, 16, 16)), Y).network_.state_dict()
    assert before
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith("refinements"), name


def test_the_settings_of_the_public_code(monkeypatch):
    runs = {}

    def look(stage, training, network, images, *, epochs="max_epochs", **options):
        runs[stage] = training, options

    watch_stages(monkeypatch, DDAD, look)
    detector = refining(refinement_epochs=3).fit(make_images((12, 16, 16)), Y)
    assert len(detector.history_["refinement"]) == 3
    assert DDAD().lr == 5e-4
    for stage, (training, options) in runs.items():
        training = training(
            detector.network_.ndm[0] if "dm" in stage else detector.network_, stage=stage, **options
        )
        training.initialize()
        assert training.optimizer_.defaults["betas"] == (0.5, 0.999)
    assert training.optimizer_.defaults["weight_decay"] == 1e-4
    assert training.optimizer_.defaults["lr"] == 1e-4
    assert training.batch_size == 8


def test_both_ensembles_pass_over_their_images_as_often(monkeypatch):
    monkeypatch.setitem(DDAD._steps, "max_epochs", 3)
    fitted = tiny(DDAD, max_epochs=None, refine=False, batch_size=4).fit(make_images((12, 16, 16)), Y)
    normal, unlabelled = (len(fitted.history_[stage]) for stage in ("ndm_0", "udm_0"))
    assert normal == unlabelled == 2


def test_none_is_a_number_of_steps_of_asr_net(monkeypatch):
    """Counted in its own batches, of 8 images, not in those of the members."""
    monkeypatch.setitem(DDAD._steps, "refinement_epochs", 5)
    fitted = refining(refinement_epochs=None, batch_size=2).fit(make_images((12, 16, 16)))
    assert len(fitted.history_["refinement"]) == 3


def test_backbones():
    x = torch.rand(4, 1, 16, 16) * 2 - 1
    for name, error in {"ae": squared_error, "aeu": likelihood_error}.items():
        assert BACKBONES[name].training.keywords["error"] is error
    memae = BACKBONES["memae"]
    with seeded(0):
        net = memae.build((1, 16, 16), 2, hidden_size=16, width=2, n_levels=2)
    memory = net.memory
    assert memory.items.shape[0] == 25
    z = net.encoder(x)
    code, weights = memory(z)
    assert_allclose(
        weights.detach(), (z @ memory.items.T).softmax(-1).detach(), rtol=1e-4, err_msg="no threshold"
    )
    losses, moved = run_step(memae.training, net, x)
    spread = losses["train_loss"] - losses["reconstruction_loss"]
    assert_allclose(spread, 2e-4 * losses["entropy"], rtol=1e-2)
    assert moved == {"encoder", "memory", "decoder"}


@pytest.mark.parametrize("backbone", ["ae", "memae", "aeu"])
def test_the_mean_of_the_members(backbone):
    X = make_images((12, 20, 14))
    detector = tiny(DDAD, backbone=backbone, n_members=3).fit(X)
    x, variance = torch.from_numpy(X[:, None] / 255).float() * 2 - 1, 1.0
    with torch.no_grad():
        found = [BACKBONES[backbone].predict(member, x) for member in detector.network_.ndm]
    mean = torch.stack([image for image, _ in found]).mean(0)
    assert_allclose(detector.reconstruct(X), (mean[:, 0] + 1) * 127.5, rtol=1e-3, atol=0.05)
    if backbone == "aeu":
        variance = torch.stack([log_variance for _, log_variance in found]).exp().mean(0)
    expected = ((x - mean).square() / variance).mean((1, 2, 3))
    assert_allclose(detector.score_components(X)["rec"], expected, rtol=1e-3)


def test_sizes_are_heard():
    make = partial(tiny, DDAD, backbone="ae", refine=False, max_epochs=1)
    X = make_images()
    plain, wide, spatial = (
        make(**options).fit(X).network_.ndm[0]
        for options in ({}, {"latent_size": 5}, {"bottleneck": "spatial"})
    )
    x = torch.zeros(1, 1, 16, 16)
    assert plain.encoder(x).shape == (1, 2)
    assert wide.encoder(x).shape == (1, 5)
    assert spatial.encoder(x).ndim == 4


def test_components():
    X = make_images((12, 16, 16))
    detector = refining().fit(X, Y)
    detector.refinement_direction_ = {"dual": 1.0}
    components = detector.score_components(X)
    net, x = detector.network_, torch.from_numpy(X[:, None] / 255).float() * 2 - 1
    with torch.no_grad():
        maps = net.discrepancies(x)
        given = {"intra": maps["intra"][:, None], "dual": torch.stack([maps["inter"], maps["intra"]], dim=1)}
        for name, map in given.items():
            logits = net.refinements[name](map)
            p = logits[:, 1].exp() / logits.exp().sum(1)
            assert_allclose(components[f"refined_{name}"], p.mean((1, 2)), rtol=1e-5)
    names = {None: "refined_dual", "intra": "refined_intra", "inter": "inter", "rec": "rec"}
    for asked, name in names.items():
        detector.set_params(score_component=asked)
        assert_allclose(-detector.score_samples(X), components[name], rtol=1e-6)
        assert_allclose(detector.anomaly_map(X).mean((1, 2)), components[name], rtol=1e-5)
    raw = tiny(DDAD, refine=False).fit(X, Y)
    assert_allclose(-raw.score_samples(X), raw.score_components(X)["inter"], rtol=1e-6)
    assert "refined_dual" not in raw.score_components(X)
    for refine, name in {True: "refined_intra", False: "intra"}.items():
        alone = tiny(DDAD, refine=refine).fit(X)
        alone.refinement_direction_ = {"intra": 1.0}
        assert_allclose(-alone.score_samples(X), alone.score_components(X)[name], rtol=1e-6)
    with pytest.raises(ValueError, match="there is no 'refined_dual' in what was fitted.*fit again"):
        raw.set_params(refine=True, score_component="dual").score_samples(X)
    few = tiny(DDAD, n_members=2, ddof=2, refine=False, score_component="rec").fit(X)
    assert set(few.score_components(X)) == {"rec"}, "too few for a deviation"


def test_a_backbone_of_ones_own():
    def make(image_shape):
        n = image_shape[0]
        return nn.Sequential(nn.Conv2d(n, 4, 3, padding=1), nn.Conv2d(4, n, 3, padding=1))

    X = make_images((24, 16, 16))
    detector = tiny(DDAD, backbone=make, max_epochs=20, lr=0.01, score_component="rec", refine=False).fit(X)
    losses = detector.history_["ndm_0"][:, "train_loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert detector.reconstruct(X).shape == X.shape


SAME = nn.Conv2d(1, 1, 3, padding=1)
FROZEN = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)


def test_members_may_share_what_is_not_trained():
    def make(image_shape):
        return nn.Sequential(FROZEN, nn.Conv2d(1, 1, 3, padding=1))

    before = FROZEN.weight.clone()
    tiny(DDAD, backbone=make, refine=False).fit(make_images((12, 16, 16)), Y)
    assert torch.equal(FROZEN.weight, before)


def test_ensembles_must_not_share_what_is_trained():
    made = []

    def make(image_shape):
        made.append(nn.Conv2d(1, 1, 3, padding=1))
        return made[0] if len(made) == 4 else made[-1]

    with pytest.raises(ValueError, match="two members share what is trained"):
        tiny(DDAD, backbone=make, n_members=2).fit(make_images((12, 16, 16)), Y)


def test_a_look_at_a_member_does_not_change_it():
    def make(image_shape):
        return nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding=1))

    network = tiny(DDAD, backbone=make)._own_member((1, 8, 8))
    assert network.training
    assert network[0].num_batches_tracked == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("y", [Y, None])
def test_a_refinement_that_points_the_wrong_way_is_not_used(tmp_path, monkeypatch, y):
    X, asked = make_images((12, 16, 16)), "intra" if y is None else "dual"
    learned = X if y is None else X[Y >= 0]
    plain, raw = tiny(DDAD).fit(X, y), RAW[asked]
    for sign, score in ((1, f"refined_{asked}"), (-1, raw)):
        # Refined maps in the order of the raw ones, and in the opposite one.
        refined = partial(lambda sign, self, name, maps: sign * maps[RAW[name]] ** 2, sign)
        monkeypatch.setattr(DDADNetwork, "refine", lambda *args, of=refined: of(*args))
        if sign < 0:
            with pytest.warns(UserWarning, match=f"points the wrong way: R_{asked} puts") as warned:
                detector = refining().fit(X, y)
            assert [warning.filename for warning in warned] == [__file__]
        else:
            detector = refining().fit(X, y)
        components = detector.score_components(learned)
        order = rankdata(components[raw])
        expected = np.corrcoef(order, rankdata(components[f"refined_{asked}"]))[0, 1]
        assert detector.refinement_direction_[asked] == pytest.approx(expected, abs=1e-6)
        assert np.sign(expected) == sign
        assert_allclose(-detector.score_samples(X), detector.score_components(X)[score], rtol=1e-6)
        save(detector, tmp_path / "a")
        assert np.array_equal(load(tmp_path / "a").score_samples(X), detector.score_samples(X))
        detector.set_params(score_component=asked)
        assert_allclose(
            -detector.score_samples(X), detector.score_components(X)[f"refined_{asked}"], rtol=1e-6
        )
    assert plain.refinement_direction_ == {}
    monkeypatch.setattr(DDADNetwork, "refine", lambda self, name, maps: torch.zeros_like(maps[RAW[name]]))
    assert refining().fit(X, y).refinement_direction_[asked] == 0, "there is no order"


def test_only_what_is_asked_for_is_refined(monkeypatch):
    X, seen = make_images((12, 16, 16)), []
    detector = refining().fit(X, Y)

    def forward(self, maps):
        seen.append(maps.shape[1])
        return original(self, maps)

    original = RefinementNetwork.forward
    monkeypatch.setattr(RefinementNetwork, "forward", forward)
    for asked, n_maps in {"rec": set(), "inter": set(), "intra": {1}, "dual": {2}}.items():
        seen.clear()
        detector.set_params(score_component=asked).score_samples(X)
        assert set(seen) == n_maps
    seen.clear()
    components = detector.score_components(X)
    assert sorted(seen) == [1, 2], "each once"
    raw = detector.set_params(score_component=None, refine=False)
    assert set(raw.score_components(X)) == {"rec", "intra", "inter"}
    assert_allclose(-raw.score_samples(X), components["inter"], rtol=1e-6)


def test_thresholds_are_from_normal_images():
    X = make_images((12, 16, 16))
    y = np.r_[1, 1, 1, 2, 2, 2, 0, 0, 0, 0, -1, -1]  # codes that mean nothing are as 1
    detector = tiny(DDAD, contamination=0.3).fit(X, y)
    assert detector.offset_ == np.percentile(detector.score_samples(X)[:6], 30)


def test_few_unlabelled_images_are_not_held_out():
    tiny(DDAD, validation_fraction=0.1).fit(make_images((6, 16, 16)), [1, 1, 1, 1, 1, 0])


class Pair(nn.Conv2d):
    """A network whose output is two images."""

    def __init__(self):
        super().__init__(1, 1, 3, padding=1)

    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        (SAME, TypeError, "must be a function that makes a new torch module"),
        (lambda shape: None, TypeError, "must be a function that makes a new torch module"),
        (lambda shape: SAME, ValueError, "must make new modules each time; two members share"),
        (
            lambda shape: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), SAME),
            ValueError,
            "must make new modules each time; two members share",
        ),
        (lambda shape: nn.Identity(), ValueError, "modules with parameters to train, made Identity"),
        (lambda shape: nn.Conv2d(1, 4, 3, padding=1), ValueError, r"\(2, 1, 16, 16\), .* \(2, 4, 16, 16\)"),
        (lambda shape: Pair(), ValueError, "None"),
    ],
)
def test_bad_backbones(backbone, error, message):
    with pytest.raises(error, match=message):
        tiny(DDAD, backbone=backbone).fit(make_images((12, 16, 16)))


@pytest.mark.parametrize("y", [np.r_[np.ones(6), np.full(6, np.nan)], [1] * 6 + [None] * 6])
def test_missing_labels_are_not_normal(y):
    with pytest.raises(ValueError, match="6 of 12 are missing, the first in row 6; .* mark them with 0"):
        tiny(DDAD).fit(make_images((12, 16, 16)), y)


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({}, np.zeros(12), r"y has 0 normal \(1\) and 12 unlabelled \(0\): give 2 normal ones"),
        ({}, np.r_[1, np.zeros(11)], r"y has 1 normal \(1\) and 11 unlabelled"),
        ({}, np.ones(5), "inconsistent numbers of samples"),
        ({}, np.repeat([2, 0], 6), r"y has 0 normal \(1\) and 6 unlabelled"),
        ({"n_members": 1}, None, "n_members must be at least 2 for members to disagree, got 1"),
        ({"n_members": 1, "refine": False, "score_component": "inter"}, Y, "n_members must be at least 2"),
        ({"n_members": 1, "refine": True, "score_component": "rec"}, None, "n_members must be at least 2"),
        ({"n_members": 2, "ddof": 2}, None, "n_members must be at least 3"),
        ({"score_component": "dual"}, None, r"score_component='dual' needs unlabelled images \(y = 0\)"),
        ({"score_component": "inter"}, np.ones(12), "score_component='inter' needs unlabelled images"),
        ({"score_component": "dual", "refine": False}, Y, "'dual' is a refined score; set refine=True"),
        ({"backbone": "vae"}, None, "'backbone' parameter of DDAD"),
        ({"refinement_synthesis": "photographs"}, None, "'refinement_synthesis' parameter of DDAD"),
        (
            {"validation_fraction": 0.5},
            np.repeat([1, 0], (3, 9)),
            "of 3 normal images leaves 2 to validate and 1",
        ),
        ({"validation_fraction": 0.1}, np.repeat([1, 0], (4, 8)), "of 4 normal images leaves 0 to validate"),
    ],
)
@pytest.mark.filterwarnings("ignore::skanomaly.labels.LabelWarning")
def test_bad_input(parameters, y, message):
    detector = tiny(DDAD, **parameters)
    with pytest.raises(ValueError, match=message):
        detector.fit(make_images((12, 16, 16)), y)
    assert not hasattr(detector, "n_unlabelled_"), "nothing half-fitted"


def test_one_member_is_enough_for_the_residual():
    X = make_images()
    detector = tiny(DDAD, n_members=1, refine=False, score_component="rec", backbone="ae").fit(X)
    assert set(detector.score_components(X)) == {"rec"}


@pytest.mark.learning
def test_learns_what_a_chest_looks_like():
    """The residual of the ensemble, and the refined map; the mean of the latter tells little of patches."""
    small = {"hidden_size": 128, "width": 8, "n_members": 2, "refinement_width": 32, "batch_size": 8}
    small |= {"max_epochs": 10, "refinement_epochs": 20}
    detector = DDAD(backbone="ae", refine=True, score_component="rec", lr=1e-3, random_state=1, **small)
    trained, untrained, foreign, masks = check_learns(detector)
    refined, before = (
        roc_auc_score(
            masks.ravel(), detector.set_params(score_component="intra").anomaly_map(foreign).ravel()
        )
        for detector in (trained, untrained)
    )
    assert refined > 0.6
    assert refined > before + 0.05
