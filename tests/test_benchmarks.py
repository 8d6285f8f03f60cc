"""The engine of the benchmarks and its scripts: any detector, failing cells, going on after a kill."""

import importlib
import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from scipy.ndimage import map_coordinates
from sklearn.covariance import ledoit_wolf
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch

from skanomaly import FeatureGaussian, _comparison
from skanomaly.datasets import load_chest_xray, make_digit_anatomy
from skanomaly.detectors import uninformed_students
from skanomaly.features import ImageFeatures
from skanomaly.metrics import auroc
from skanomaly.synthesis import SYNTHESES
from skanomaly.testing import all_detectors, make_images, tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A benchmark script by name, with few resamples; its `run` writes to tmp_path."""
    few = partial(_comparison.metrics.bootstrap_interval, n_resamples=1)
    monkeypatch.setattr(_comparison.metrics, "bootstrap_interval", few)
    monkeypatch.setattr(_comparison, "N_PIXEL_RESAMPLES", 3)
    monkeypatch.setitem(_comparison.OPTIONS, "data", {"type": Path, "default": tmp_path})
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS / "studies")

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)

        def run(*options):
            options = *options, "--threads", "1", "--results", tmp_path
            monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
            module.main()

        module.run = run
        return module

    return load


@pytest.fixture
def folder(tmp_path):
    """A set with masks and one without patients, masks or sense."""
    n = 60
    split = np.repeat(["train", "val", "test"], n // 3)
    labels = np.r_[np.zeros(n // 3, int), np.arange(2 * n // 3) % 2 * (np.arange(2 * n // 3) > 25)]
    images = make_images((n, 16, 16))
    masks = np.zeros(images.shape, np.uint8)
    masks[labels == 1, 4:9, 4:9] = 1
    groups = np.arange(n) // 2
    np.savez(tmp_path / "good.npz", images=images, labels=labels, split=split, mask=masks, group_ids=groups)
    np.savez(tmp_path / "bad.npz", images=images[:, :0], labels=labels, split=split)
    return tmp_path


def run(store, *cells, limit=0, load=_comparison.load, evaluate=_comparison.evaluate):
    for name, label, detector in cells:
        store.run(name, label, detector, evaluate, load, store.path.parent, limit)


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_every_detector_has_its_cell(script, folder, capsys):
    accuracy, store = script("accuracy"), _comparison.Cells(folder / "cells.jsonl")
    for data in ("bad", "good"):
        run(store, *((data, name, tiny(cls)) for name, cls in all_detectors()))
    names = sorted(name for name, _ in all_detectors())
    results = store.results()
    assert [cell["detector"] for cell in results] == names
    for cell in results:
        assert 0 <= cell["auroc"][1] <= cell["auroc"][2] <= 1
        has_maps = cell["detector"] not in ("DeepSVDD", "PANDA")
        assert len(cell["dice"]) == 3 if has_maps else "dice" not in cell
    report = accuracy.report(results)
    assert all(f"| good | {name} | 1 |" in report for name in names)
    failed = store.failed()
    assert sorted(cell["detector"] for cell in failed) == names
    assert all(cell["error"].startswith("ValueError: images in X must have pixels") for cell in failed)


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_a_killed_run_goes_on(script, folder, capsys):
    store = _comparison.Cells(folder / "cells.jsonl")
    cell = "good", "AutoEncoder", tiny(dict(all_detectors())["AutoEncoder"])
    run(store, cell)
    whole = store.path.read_text()
    run(store, cell)
    assert store.path.read_text() == whole, "a cell that is there is not run again"
    store.path.write_text(whole[: len(whole) // 2])
    run(store, cell)
    again = store.read()[-1]
    seconds = {"fit_seconds", "images_per_second"}
    assert {k: v for k, v in again.items() if k not in seconds} == {
        k: v for k, v in json.loads(whole).items() if k not in seconds
    }
    # Another file of the same name is another set.
    arrays = dict(np.load(folder / "good.npz"))
    np.savez(folder / "good.npz", **arrays | {"images": arrays["images"][::-1]})
    run(store, cell)
    assert len(store.read()) == 2


def test_a_cell_has_only_so_much_time(folder, capsys):
    store = _comparison.Cells(folder / "cells.jsonl")
    cell = "good", "AutoEncoder", tiny(dict(all_detectors())["AutoEncoder"])

    def slow(detector, splits):
        time.sleep(0.2)
        return {"auroc": 1.0}

    run(store, cell, limit=0.01, evaluate=slow)
    assert [cell["error"] for cell in store.failed()] == ["TimeoutError: more than 0.01 s"]
    assert _comparison.mean(store.results(), "auroc") == "-"
    run(store, cell, limit=0.01, evaluate=slow)
    assert len(store.read()) == 1, "it would take too long again"
    run(store, cell, limit=30, evaluate=slow)
    assert not store.failed()
    assert _comparison.mean(store.results(), "auroc") == "1.000"


def forget_code():
    _comparison._module.cache_clear()
    _comparison.code_digest.cache_clear()


def test_only_cells_of_changed_code_run_again(folder, monkeypatch, capsys):
    store, found = _comparison.Cells(folder / "cells.jsonl"), dict(all_detectors())
    cells = [("good", name, tiny(found[name])) for name in ("AutoEncoder", "MemAE")]

    def evaluate(detector, splits):
        return {"auroc": 0.5}

    def change(module, old, new):
        source = _comparison.inspect.getsource

        def changed(of):
            text = source(of)
            assert of.__name__ != module or old in text
            return text.replace(old, new) if of.__name__ == module else text

        monkeypatch.setattr(_comparison.inspect, "getsource", changed)
        forget_code()
        before = len(store.read())
        shown = [_comparison.mean([cell], "auroc") for cell in store.results()]
        run(store, *cells, evaluate=evaluate)
        return shown, [cell["detector"] for cell in store.read()[before:]]

    run(store, *cells, evaluate=evaluate)
    losses = "skanomaly._losses"
    assert change(losses, '"""Errors', '"""Other words') == (["0.500", "0.500"], []), "prose"
    assert change(losses, "def squared_error", "# Words.\ndef squared_error") == (["0.500"] * 2, [])
    assert change("skanomaly.plotting", "import", "import os, ") == (["0.500"] * 2, []), "another room"
    memory = "skanomaly.training._memory", "class ", "pass\nclass "
    assert change(*memory) == (["0.500", "0.500 †"], ["MemAE"])
    assert [cell["stale"] for cell in store.results()] == [False, False]
    run(store, *cells, evaluate=evaluate)
    assert len(store.read()) == 3
    monkeypatch.undo()  # the code of the first run of MemAE, which is kept
    forget_code()
    assert [cell["stale"] for cell in store.results()] == [False, False]
    old = [cell | {"code": "of long ago"} for cell in store.read()]
    for adopted, stale in (["MemAE"], [True, False]), ([], [False, False]):
        store.path.write_text("".join(json.dumps(cell) + "\n" for cell in old))
        store.adopt(adopted)
        assert [cell["stale"] for cell in store.results()] == stale
    # A stale result of another seed is not averaged with fresh ones, and comes back when these are gone.
    last = store.results()[-1]
    other = {name: last[name] for name in last if name != "stale"} | {"seed": 9, "code": "of long ago"}
    with store.path.open("a") as file:
        file.write(json.dumps(other) + "\n")
    assert 9 not in [cell["seed"] for cell in store.results()]
    store.path.write_text(json.dumps(other) + "\n")
    assert [cell["seed"] for cell in store.results()] == [9]


def test_variants_by_name():
    detector = _comparison.make("FAnoGAN:encoder_training=izi,lr=1e-3,n_levels=None", random_state=3)
    detector = _comparison.with_epochs(detector, 2)
    assert (detector.encoder_training, detector.lr, detector.n_levels) == ("izi", 1e-3, None)
    assert (detector.max_epochs, detector.encoder_epochs, detector.random_state) == (2, 2, 3)
    with pytest.raises(SystemExit, match="no detector 'Nothing'; there are .*AutoEncoder"):
        _comparison.make("Nothing")


def test_a_sum_of_variants_is_an_ensemble():
    ensemble = _comparison.make("PaDiM:layers=(1, 2) + DRAEM", random_state=3)
    assert [(name, type(member).__name__) for name, member in ensemble.detectors] == [
        ("padim", "PaDiM"),
        ("draem", "DRAEM"),
    ]
    assert (ensemble.detectors[0][1].layers, ensemble.random_state) == ((1, 2), 3)
    identity = _comparison.identity("set", "digest", ensemble)
    assert identity["classes"] == ["DRAEM", "PaDiM", "ScoreEnsemble"]


def test_pictures_of_images_that_may_not_be_published_stay_outside(tmp_path):
    inside = BENCHMARKS / "results"
    for name, ships in {"cxr_nih_64": True, "brain_mri_64": False, "fundus_dr_64": False}.items():
        assert _comparison.may_draw(name, inside) == ships
        assert _comparison.may_draw(name, tmp_path)
    assert not [path for word in ("brain", "fundus") for path in inside.rglob(f"*{word}*.png")]


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_command_of_accuracy(script, folder, capsys):
    accuracy = script("accuracy")
    one = "AutoEncoder:width=2,hidden_size=16"
    (folder / "sets").mkdir()
    (folder / "good.npz").rename(folder / "sets" / "good.npz")
    accuracy.run("--detectors", one, "--data", folder / "sets", "--epochs", 1, "--seeds", 2)
    made = folder / "accuracy_1_epochs"
    tables = (made / "table.md").read_text()
    assert f"| good | {one} | 2 | 0." in tables
    assert "| good | AEU | 0 | - | - | - | - | - | - |" in tables
    assert "| good | baseline: HOG, PCA-16 | 1 | 0." in tables
    assert "| good | baseline: pixels, isolation forest | 2 | 0." in tables
    summary = (made / "summary.md").read_text()
    assert f"\n| {one} | " in summary
    n = len(_comparison.names()) + 1
    assert f"\n1 of {n} detectors and 5 baselines have been measured; shown are 6." in summary
    assert re.search(r"\n\| \(best confound alone\) \| [01]\.\d{3} \w+ \| - \|\n", summary)


@pytest.fixture
def baselines(script, folder):
    """The module, beside a set whose anomalous images are brighter inside."""
    module = script("_baselines")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2 * (np.arange(120) >= 40)
    images = rng.integers(0, 40, (120, 16, 16)) + rng.integers(60, 130, 120)[:, None, None]
    inside = rng.integers(60, 100, 120) + 25 * labels
    images[:, 1:-1, 1:-1] = rng.integers(0, 40, (120, 14, 14)) + inside[:, None, None]
    split = np.repeat(["train", "val", "test"], 40)
    np.savez(folder / "bright.npz", images=images.astype(np.uint8), labels=labels, split=split)
    return module


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_every_baseline_has_its_cell(baselines, script, folder, capsys):
    accuracy = script("accuracy")
    accuracy.run("--baselines", "--sets", "bright")
    cells = _comparison.Cells(folder / "accuracy" / "cells.jsonl").results()
    assert [cell["detector"] for cell in cells] == sorted(f"baseline: {kind}" for kind in baselines.KINDS)
    found = {cell["detector"].removeprefix("baseline: "): cell for cell in cells}
    assert not any(cell["stale"] or "pixel_auroc" in cell for cell in cells)
    forget_code()
    assert _comparison.code_digest("Baseline") != _comparison.code_digest("no class"), (
        "of the baselines' code"
    )
    assert {cell["confound"] for cell in cells} == {"brightness"}
    assert 0.8 < found["brightness"]["auroc"][0] == cells[0]["confound_auroc"][0] < 1
    assert found["brightness"]["stratified_auroc"][0] == 0.5
    assert found["pixels, nearest training image"]["auroc"][0] > 0.8
    assert found["pixels, isolation forest"]["auroc"][0] > 0.8
    n = len(cells)
    accuracy.run("--baselines", "--sets", "bright")
    assert len(_comparison.Cells(folder / "accuracy" / "cells.jsonl").read()) == n, "nothing is run twice"
    table = (folder / "accuracy" / "table.md").read_text()
    assert "\n| bright | brightness | 0." in table


def test_a_confound_whose_less_is_worse(baselines, folder):
    splits = _comparison.load("bright", folder)
    for part in splits.values():
        part.images = 255 - part.images
    one = baselines.Baseline("brightness", random_state=0)
    result = baselines.evaluate(one, splits)
    assert one.sign == -1
    assert result["auroc"][0] == result["confound_auroc"][0] > 0.8
    for part in splits.values():
        part.images[:] = np.where(part.target == -1, 9, 0)[:, None, None]
        part.images[:, 0] += np.arange(len(part.target), dtype=np.uint8)[:, None] % 3
    apart = baselines.evaluate(baselines.Baseline("brightness"), splits)
    assert np.isnan(apart["stratified_auroc"]).all(), "no warning either: there is nothing to compare"


def test_cells_of_before_have_no_strata(script):
    accuracy = script("accuracy")
    figure = [0.7, 0.6, 0.8]
    same = dict.fromkeys(("auroc", "ap", *_comparison.AT_THRESHOLD), figure) | {"components": {}}
    same |= dict.fromkeys(("fit_seconds", "images_per_second", "val_auroc", "false_alarms_before"), 0.5)
    same |= {"data": "made", "stale": False, "n_val_normal": 20, "false_alarms_after": 0.05}
    old = same | {"detector": "Old"}
    mixed = same | {"detector": "Mixed"}
    new = {"confound": "noise", "confound_auroc": figure, "stratified_auroc": [0.5, 0.4, 0.6]}
    text = accuracy.report([old, mixed, mixed | new, same | new | {"detector": "New"}])
    assert "| made | Old | 1 | 0.700 [0.600, 0.800] | - | 0.700 " in text
    assert "| made | Mixed | 2 | 0.700 (0.000) [0.600, 0.800] | - | 0.700 " in text
    assert "| made | New | 1 | 0.700 [0.600, 0.800] | 0.500 [0.400, 0.600] | 0.700 " in text
    assert "| made | noise | 0.700 [0.600, 0.800] |" in text
    assert "| made | - |" not in accuracy.report([old])


def test_the_score_within_the_strata_of_its_confound_is_chance(script):
    """A detector that reads brightness, on images whose illness is brightness."""
    rng = np.random.default_rng(0)
    y = np.where(np.arange(80) % 2, -1, 1)
    images = rng.integers(0, 100, (80, 8, 8))
    images[:, 1:-1, 1:-1] += np.rint(20 * (y == -1) + rng.normal(60, 20, 80)).astype(int)[:, None, None]
    test = _comparison.Bunch(images=images, target=y, groups=None)
    detector = tiny(dict(all_detectors())["AutoEncoder"])
    for score in images.mean((1, 2)), -images.mean((1, 2)):
        found = _comparison.audit(detector, test, score)
        assert found["confound"] == "brightness"
        assert found["confound_auroc"][0] > 0.6
        assert found["stratified_auroc"][0] == pytest.approx(0.5)
    signal = rng.normal(size=80) + 2 * (y == -1)
    assert _comparison.audit(detector, test, signal)["stratified_auroc"][0] > 0.8


def test_baselines_by_hand(baselines):
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=(2, 40, 6)) @ rng.normal(size=(6, 6))
    mean = rows.mean(0)
    directions = np.linalg.svd(rows - mean)[2][:2]
    rest = (new - mean) - (new - mean) @ directions.T @ directions
    assert_allclose(baselines.reconstruction(rows, 2, 0)(new), (rest**2).mean(1))
    assert baselines.reconstruction(rows[:3], 30, 0)(rows[:3]).max() < 1e-12, "fewer images than components"
    distances = np.sqrt(((new[:, None] - rows) ** 2).sum(2)).min(1)
    assert_allclose(baselines.nearest(rows, 0)(new), distances)
    scaled, new = (rows - mean) / rows.std(0), (new - mean) / rows.std(0)
    covariance = ledoit_wolf(scaled)[0]
    expected = np.einsum("ij,jk,ik->i", new, np.linalg.inv(covariance), new)
    assert_allclose(baselines.gaussian(rows, 0)(new * rows.std(0) + mean), expected)


@pytest.mark.parametrize("side", [64, 128])
def test_derivative_energies_of_a_slope(baselines, side):
    """A slope along the columns has a constant derivative there, none along the rows, and no Laplacian."""
    slope = torch.arange(side, dtype=torch.float32).div(side).expand(2, 3, side, side).mT
    features = np.exp(baselines.energies(slope)) - 0.001
    maps = features.reshape(2, 3, 4, 8, 8)[..., 1:-1, 1:-1]
    for at, scale in enumerate(baselines.SCALES):
        down, right, laplacian, smooth = maps[0, at]
        assert_allclose(down, scale / 64, rtol=0.05)
        assert_allclose(right, 0, atol=1e-6)
        assert_allclose(laplacian, 0, atol=2e-3)
        assert_allclose(smooth[:, 0], (np.arange(1, 7) + 0.5) / 8, atol=0.02)


@pytest.fixture
def fanogan(script, monkeypatch, folder):
    study = script("fanogan")
    arrays = dict(np.load(folder / "good.npz"))
    arrays["labels"][20:] = np.arange(40) % 2
    np.savez(folder / "both.npz", **arrays)
    monkeypatch.setattr(study, "N_SEARCHED", 8)
    monkeypatch.setattr(study, "N_BETWEEN", 3)
    monkeypatch.setattr(study, "N_SHOWN", 1)
    monkeypatch.setattr(study, "CACHE", folder / "cache")
    sized = study.Models._sized

    def small(models, detector, n_images):
        detector = sized(models, detector, n_images)
        size = {"width": 2, "hidden_size": 16, "n_critic": 1}
        return detector.set_params(**{name: size[name] for name in size.keys() & detector.get_params()})

    monkeypatch.setattr(study.Models, "_sized", small)
    return study


@pytest.mark.study
def test_the_tables_of_fanogan(fanogan, folder, monkeypatch, capsys):
    monkeypatch.setattr(_comparison, "may_draw", lambda *arguments: False)
    options = "--epochs", 1, "--seeds", 2, "--sets"
    fanogan.run(*options, "both")
    first = (folder / "fanogan_1_epochs" / "table.md").read_text()
    for method in ("ziz", "izi", "izi_f", "AE", "AdvAE", "ALI", "A_D", "iterative", "f-AnoGAN"):
        assert f"| both | {method} | 2 |" in first
    assert "| both | AnoGAN | 1 |" in first
    for better, worse in ("izi_f", "ziz"), ("ziz", "izi"), ("iterative", "AE"), ("ALI", "A_D"):
        assert f"| both | {better} > {worse} |" in first
    assert "trained in" in capsys.readouterr().out
    fanogan.run(*options, "both")
    assert (folder / "fanogan_1_epochs" / "table.md").read_text() == first
    assert "trained in" not in capsys.readouterr().out, "what is there is not trained again"
    with pytest.raises(SystemExit, match="good: split 'val' must hold normal and anomalous images"):
        fanogan.run(*options, "good")


@pytest.mark.study
def test_the_pictures_of_fanogan(fanogan, folder, monkeypatch, capsys):
    monkeypatch.setattr(fanogan, "OTHERS", {})
    monkeypatch.setattr(fanogan, "ORDERS", (["izi_f", "ziz"],))
    fanogan.run("--epochs", 1, "--sets", "both")
    table = (folder / "fanogan_1_epochs" / "table.md").read_text()
    for kind in ("curves", "lines", "maps"):
        assert (folder / "fanogan_1_epochs" / f"both_{kind}.png").stat().st_size > 10_000
        assert f"](both_{kind}.png)" in table


def test_one_gan_has_three_encoders(fanogan, folder):
    memory = fanogan.Memory(folder / "cache", verbose=0)
    models = fanogan.Models("both", folder, memory, epochs=3, full=False)
    networks = [models.fit(kind, 0).network_ for kind in fanogan.ENCODERS]
    for part, same in (("generator", True), ("critic", True), ("encoder", False)):
        states = [getattr(network, part).state_dict() for network in networks]
        equal = [
            all(torch.equal(a, b) for a, b in zip(state.values(), states[-1].values()))
            for state in states[:-1]
        ]
        assert equal == [same, same], part


def test_searched_images_and_cut_offs(fanogan):
    """Scores that are the row's number: the searched images must be met by their own labels."""
    rng = np.random.default_rng(0)
    rows = {"val": np.arange(0, 40, 4), "test": np.arange(1, 40, 3)}

    class Made:
        name, searched = "made", rows
        splits = {
            split: fanogan.Bunch(target=np.where(rng.uniform(size=40) < 0.5, -1, 1), groups=None)
            for split in ("train", "val", "test")
        }

        def score(self, method, seed):
            part = rows if method == "iterative" else dict.fromkeys(rows, np.arange(40))
            return {split: part[split] + 100 * (split == "test") for split in rows} | {"seconds": 1.0}

    searched = fanogan.Comparison(Made(), ["AE", "iterative"], 1, searched=True)
    truth = Made.splits["test"].target[rows["test"]]
    expected = fanogan.metrics.auroc(truth, rows["test"])
    assert searched.auroc("AE")[0] == searched.auroc("iterative")[0] == expected
    assert searched.difference("AE", "iterative")[0] == 0
    # Scores of test are 100 higher: a cut-off from val flags all of it, one from test would not.
    assert searched.row("AE")[4:6] == ["1.000", "0.000"], "sensitivity and specificity"
    whole = fanogan.Comparison(Made(), ["AE"], 1, searched=False)
    assert whole.auroc("AE")[0] == fanogan.metrics.auroc(Made.splits["test"].target, np.arange(40))


def test_orders_are_judged_by_their_intervals(fanogan):
    class Made(fanogan.Comparison):
        def __init__(self, name, scores, target):
            self.name, self.test = name, fanogan.Bunch(target=target, groups=None)
            self.scores = {method: [{"test": score}] for method, score in scores.items()}

    target = np.repeat([1, -1], 40)
    good, coin = -target, np.arange(80) % 2
    names = [name for order in fanogan.ORDERS for name in order]
    scores = dict.fromkeys(names, coin) | {"izi_f": good, "izi": good}
    made = Made("made", scores, target)
    verdicts = {row[1]: row[-1] for row in fanogan.orderings(made, made)}
    assert verdicts["izi_f > ziz"] == "holds"
    assert verdicts["ziz > izi"] == "reversed"
    assert verdicts["AE > AdvAE"] == "undecided"
    assert made.difference("izi_f", "ziz")[0] == pytest.approx(0.5)


@pytest.mark.study
@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_parts_of_ssl_anovae(script, tmp_path, monkeypatch, capsys):
    study = script("ssl_anovae")
    monkeypatch.setattr(study, "VARIANTS", {"plain": "SSLAnoVAE:width=2,hidden_size=16"})
    monkeypatch.setattr(study, "OTHERS", {"plain one": "AutoEncoder:width=2,hidden_size=16"})
    monkeypatch.setattr(study, "N_SCANS", {"train": 8, "val": 6, "test": 6})
    study.run("--epochs", 1, "--sets", "phantom_oct_64")
    table = (tmp_path / "ssl_anovae_1_epochs" / "table.md").read_text()
    assert "| phantom_oct_64 | plain | 1 | 0." in table
    assert "| phantom_oct_64 | plain one | 1 | 0." in table
    assert "| fundus_dr_64 | plain | 0 | - | - | - |" in table


@pytest.mark.study
def test_the_study_of_backbones(script, tmp_path, monkeypatch, capsys):
    study = script("backbones")
    split, labels = np.repeat(["train", "val", "test"], 20), np.arange(60) % 2 * (np.arange(60) > 19)
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", images=make_images((60, 16, 16)), labels=labels, split=split)
    settings = {"coarse": {"layers": (2,)}, "fine": {"layers": (0,)}}
    small = {"backbone": "filters", "input_size": 16}
    monkeypatch.setattr(study, "SETTINGS", {name: small | of for name, of in settings.items()})
    transforms = []
    transform = ImageFeatures.transform
    monkeypatch.setattr(ImageFeatures, "transform", lambda *a: transforms.append(a) or transform(*a))
    heads = "--heads", *study.HEADS, "FeatureGaussian"
    study.run("--sets", "one", "two", *heads)
    assert len(transforms) == 2 * 2 * 3, "once for each set, setting and split"
    folder = tmp_path / "backbones"
    both, val, one, two, seconds = (folder / "table.md").read_text().split("| backbone |")[1:]
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    assert len(cells) == 2 * 2 * 8
    (cell,) = (c for c in cells if c["detector"] == "CBLOF on fine" and c["data"] == "one")
    parts = _comparison.load("one", tmp_path)
    features = ImageFeatures(layers=(0,), **small, random_state=0)
    alone = make_pipeline(features, study.HEADS["CBLOF"](0)).fit(parts["train"].images)
    assert cell["auroc"] == auroc(parts["test"].target, -alone.score_samples(parts["test"].images))
    assert cell["val_auroc"] == auroc(parts["val"].target, -alone.score_samples(parts["val"].images))
    assert f"| {cell['auroc']:.3f} |" in one
    study.run("--sets", "one", "two", *heads)
    assert len((folder / "cells.jsonl").read_text().splitlines()) == len(cells), "nothing is run twice"


@pytest.fixture
def students(script, monkeypatch):
    """The study with small networks, few steps of a search and few patches."""
    students = script("students")
    small = {"width": 2, "hidden_size": 16, "n_search": 2, "n_rows": 200}
    small |= {"backbone": "filters", "n_students": 2}
    small |= {f"describer__{name}": small[name] for name in ("backbone", "width")}
    small |= {"n_features": 4, "describer__n_features": 4, "describer__layers": (2,)}
    monkeypatch.setattr(uninformed_students, "N_PATCHES", 8)

    def shrunk(new, random_state):
        made = new(random_state=random_state)
        return made.set_params(**{name: small[name] for name in small.keys() & made.get_params()})

    methods = {name: partial(shrunk, new) for name, new in students.METHODS.items()}
    monkeypatch.setattr(students, "METHODS", methods)
    monkeypatch.setattr(students, "N_GRIDS", 10)
    monkeypatch.setattr(students, "make_digit_anatomy", partial(make_digit_anatomy, size=24))
    return students


def lines_of(table, start):
    """Figures of the lines that begin so, in a text with tables."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [[float(one) for one in line[1:]] for line in lines if line[0] == start]


@pytest.mark.study
def test_the_study_of_students(students, folder, monkeypatch, capsys):
    fits = []
    fit = students.UninformedStudents.fit
    monkeypatch.setattr(students.UninformedStudents, "fit", lambda *a: fits.append(a) or fit(*a))
    students.run("--epochs", 1, "--sets", "good", "DigitAnatomy")
    assert len(fits) == 2 * 2, "in each set the students once, and one teacher for three heads"
    of = folder / "students_1_epochs"
    table = (of / "table.md").read_text()
    good, grids, mean = (lines_of(table, name) for name in ("good", "DigitAnatomy, 10 grids", "mean"))
    assert np.shape(good) == np.shape(grids) == (len(students.METRICS), len(students.ROWS))
    assert_allclose(mean, np.mean([good, grids], axis=0), atol=1e-3 + 1e-9)
    cells = [json.loads(line) for line in (of / "cells.jsonl").read_text().splitlines()]
    assert len(cells) == 2 * len(students.METHODS)
    assert all(cell["rows"].keys() <= set(students.ROWS) for cell in cells)
    # A row is the detector as anybody fits it, and heads before it change nothing.
    rows = {row: figures for cell in cells if cell["data"] == "good" for row, figures in cell["rows"].items()}
    parts = _comparison.load("good", folder) | {"described": {}}
    test = parts["test"]
    maps = students.judged(students.METHODS["dictionary"](random_state=0), parts)
    assert rows["dictionary"] == students.figures(test, maps, maps.mean((1, 2)))
    alone = students.METHODS["l2-AE"](random_state=0).set_params(max_epochs=1).fit(parts["train"].images)
    assert rows["l2-AE"] == {
        "pro": _comparison.metrics.pro(test.masks, alone.anomaly_map(test.images), max_false_alarm_rate=0.3),
        "pixel_auroc": _comparison.metrics.pixel_auroc(test.masks, alone.anomaly_map(test.images)),
        "pixel_ap": _comparison.metrics.pixel_average_precision(test.masks, alone.anomaly_map(test.images)),
        "auroc": auroc(test.target, -alone.score_samples(test.images)),
    }
    students.run("--epochs", 1, "--sets", "good", "DigitAnatomy")
    assert len((of / "cells.jsonl").read_text().splitlines()) == len(cells), "nothing is run twice"
    assert len(fits) == 4


@pytest.fixture
def category_folder(tmp_path):
    """Two categories laid out as in MVTec AD, one grey and one in colours, of 40 pixels a side."""
    for name, channels in (("grey", ()), ("colours", (3,))):
        images = make_images((14, 40, 40, *channels))
        places = ["train/good"] * 8 + ["test/good"] * 2 + ["test/hole"] * 3 + ["test/a_scratch"]
        for k, (place, image) in enumerate(zip(places, images)):
            path = tmp_path / "mvtec" / name / place / f"{k:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((40, 40), np.uint8)
            if place.startswith("test") and not place.endswith("good"):
                mask[10:20, 2 * k : 2 * k + 8] = 255
                image[mask > 0] = 255
                truth = tmp_path / "mvtec" / name / "ground_truth" / path.parent.name / f"{k:03}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth)
            Image.fromarray(image).save(path)
    return tmp_path / "mvtec"


def test_a_category_of_mvtec(students, category_folder):
    for name, shape in (("grey", (20, 20)), ("colours", (20, 20, 3))):
        parts = students.load(f"{name}, 20 pixels", category_folder)
        assert parts["train"].images.shape == (8, *shape)
        test = parts["test"]
        assert test.images.shape == (6, *shape)
        assert test.target.tolist() == [-1, 1, 1, -1, -1, -1], "scratch, good, hole"
        expected = np.zeros((6, 20, 20), bool)
        for i, k in ((0, 13), (3, 10), (4, 11), (5, 12)):
            expected[i, 5:10, k : k + 4] = True
        assert np.array_equal(test.masks, expected)
        assert test.images[3, 6:9, 11:13].min() > 240 > test.images[1].mean()


@pytest.mark.study
def test_the_study_of_students_on_categories(students, category_folder, tmp_path, capsys):
    options = "--data", category_folder, "--size", 20, "--epochs", 1, "--methods", "k-means", "dictionary"
    students.run(*options)
    table = (tmp_path / "students_1_epochs" / "table.md").read_text().replace(" -", " nan")
    grey, colours, mean = (lines_of(table, of) for of in ("grey, 20 pixels", "colours, 20 pixels", "mean"))
    made = [students.ROWS.index("k-means"), students.ROWS.index("dictionary")]
    assert np.isfinite(grey).sum() == np.isfinite(colours).sum() == len(made) * len(students.METRICS)
    assert_allclose(mean, np.mean([grey, colours], axis=0), atol=1e-3 + 1e-9)


def test_students_of_one_patch_size(students):
    X = make_images((8, 20, 20))
    small = {"width": 2, "n_features": 4, "teacher_epochs": 1, "max_epochs": 1, "backbone": "filters"}
    detector = students.UninformedStudents(patch_sizes=(17, 33), random_state=0, **small).fit(X)
    maps = students.scale_maps(detector, X)
    assert list(maps) == ["p = 17", "p = 33"]
    x = torch.from_numpy(X[:, None] / np.float32(255))
    low, high = detector.intensity_range_
    assert (low, high) == (0, 255)
    for p, scale in detector.network_.scales.items():
        with torch.no_grad():
            error, variance = scale.standardise(scale.regress(x)).unbind(1)
        assert_allclose(maps[f"p = {p}"], error + variance, rtol=1e-3, atol=1e-4)
    assert_allclose(np.mean(list(maps.values()), axis=0), detector.anomaly_map(X), rtol=1e-4, atol=1e-5)


def test_heads_of_patches(students):
    import _patch_heads as heads

    rng = np.random.default_rng(0)
    rows, x = rng.normal(size=(300, 5)), rng.normal(size=(40, 5))
    to_rows = np.linalg.norm(x[:, None] - rows, axis=2)
    to_words = np.sort(np.linalg.norm(x[:, None] - heads.words(rows, 0), axis=2), axis=1)
    assert to_words.shape[1] == 10
    assert_allclose(heads.HEADS["1-NN"](rows, 0)(x), to_rows.min(1))
    assert_allclose(heads.HEADS["1-NN"](rows, 0)(rows), 0, atol=1e-7)
    assert_allclose(heads.HEADS["k-means"](rows, 0)(x), to_words[:, 0])
    assert_allclose(heads.HEADS["dictionary"](rows, 0)(x), to_words[:, :5].mean(1))
    near, far = heads.HEADS["OC-SVM"](rows, 0)(np.array([np.zeros(5), np.full(5, 9.0)]))
    assert near < far


@pytest.mark.parametrize("channels", [(), (3,)])
def test_descriptors_and_maps_of_patches(students, channels):
    import _patch_heads as heads

    X = make_images((34, 22, 30, *channels))  # more than are described at a time
    describer = ImageFeatures(backbone="filters", layers=(0,), random_state=0)
    backbone = heads.BackboneHead("1-NN", describer, patch_size=8, step=4, n_rows=500, random_state=0)
    small = {"width": 2, "n_features": 4, "teacher_epochs": 1, "max_epochs": 1, "backbone": "filters"}
    teacher = students.UninformedStudents(patch_sizes=(17,), n_students=2, random_state=0, **small)
    teacher = heads.TeacherHead("1-NN", teacher, step=3, n_rows=500, random_state=0)
    for head, first in ((backbone, 3.5), (teacher, 0)):
        described = np.concatenate(list(head.fit(X).descriptors(X)))
        height, width = described.shape[1:3]
        assert (height, width) == ((4, 6) if head is backbone else (8, 10))
        sample = head.sample(X)
        assert sample.shape == (15 * 34, described.shape[-1])
        everything = described.reshape(-1, described.shape[-1])
        assert np.isin(sample[:, 0], everything[:, 0]).all()
        assert 0.4 < np.isin(sample[:, 0], described[:, height // 2 :, :, 0]).mean() < 0.6, "of all places"
        head.learn(sample)
        maps = head.maps(described, (22, 30))
        scores = head.judge_(everything).reshape(34, height, width)
        # Linear between the places that are described, constant beyond them.
        inside = (np.arange(22) - first) / head.step, (np.arange(30) - first) / head.step
        places = np.meshgrid(*inside, indexing="ij")
        expected = [map_coordinates(one, places, order=1, mode="nearest") for one in scores]
        assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)
    patch = X[33, 8:16, 12:20]
    features = ImageFeatures(
        backbone="filters", layers=(0,), grid=1, intensity_range=(int(X.min()), int(X.max())), random_state=0
    ).fit(X[:2, :8, :8])
    described = backbone.describe(X)
    assert_allclose(described[33, 2, 3], features.transform(patch[None])[0], rtol=1e-3, atol=1e-5)
    x = np.pad(X.reshape(34, 22, 30, -1)[33].transpose(2, 0, 1), ((0, 0), (8, 8), (8, 8)))[:, 6:23, 9:26]
    (scale,) = teacher.detector_.network_.scales.values()
    low, high = teacher.detector_.intensity_range_
    with torch.no_grad():
        expected = scale.teacher(torch.from_numpy((x / np.float32(high))[None])).ravel()
    assert low == 0
    assert_allclose(teacher.describe(X)[33, 2, 3], expected, rtol=1e-3, atol=1e-5)


@pytest.fixture
def squid(script):
    return script("squid")


@pytest.mark.study
@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_study_of_squid(squid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(squid, "SMALL", (8, 1, 2))
    monkeypatch.setattr(squid, "N_TEST", {"val": 5, "test": 5})
    monkeypatch.setattr(squid, "make_digit_anatomy", partial(make_digit_anatomy, size=48))
    monkeypatch.setattr(squid, "RIVALS", {"AutoEncoder": "AutoEncoder:width=2,hidden_size=16"})
    monkeypatch.setattr(squid, "COMPONENTS", {"no discriminator": squid.COMPONENTS["no discriminator"]})
    monkeypatch.setattr(squid, "OTHERS", ("k=1",))
    parts = "--parts", "headline", "components", "robustness", "contamination"
    squid.run(*parts, "--epochs", 1, "--seeds", 2)
    folder = tmp_path / "squid_1_epochs"
    text = (folder / "table.md").read_text()
    headline, components, robustness, *shares = text.split(" % normal.")[1:]
    assert "| SQUID | score | 2 |" in headline
    assert "| AutoEncoder | zero |" in headline
    assert "| (the grid before the anomaly) | missing | 1.000 | 1.000 | 1.000" in headline
    assert "| no discriminator | residual | 1 |" in components
    assert "| k=1 | score | 1 |" in robustness
    assert len(shares) == 3
    assert all("| AutoEncoder | score | 1 |" in share for share in shares)
    assert (folder / "SQUID.png").exists()
    n_lines = len((folder / "cells.jsonl").read_text().splitlines())
    squid.run(*parts, "--epochs", 1, "--seeds", 2)
    assert len((folder / "cells.jsonl").read_text().splitlines()) == n_lines, "nothing is run twice"


def test_what_a_reconstruction_of_digits_shows(squid):
    parts = squid.load("90 grids, 75 % normal", None)
    train, test = parts["train"], parts["test"]
    clean = make_digit_anatomy(90, random_state=0).images
    spoilt = (train.images != clean).any((1, 2))
    assert spoilt.sum() == 22, "a quarter"
    assert np.array_equal(spoilt, train.target == -1)
    assert squid.by_kind(test, test.target == -1)["mean"] == 1
    cells = squid.to_cells(test.images)
    assert_allclose(cells[3, 5].reshape(32, 32), test.images[3, 32:64, 64:] / 255)

    class Oracle:
        def predict(self, cells):
            known = np.concatenate(squid.to_cells(test.normal))
            digit = {cell.tobytes(): k % 9 for k, cell in enumerate(known)}
            return np.array([digit.get(cell.tobytes(), -1) for cell in cells])

    average = clean.mean(0)
    perfect = squid.restoration(test, test.normal, average, Oracle())
    for kind in squid.RESTORED:
        assert {perfect[kind][name] for name in ("both", "recognised", "grid nearer than mean")} == {1}
    repeated = squid.restoration(test, test.images, average, Oracle())
    assert repeated["zero"]["both"] == repeated["missing"]["recognised"] == 0
    blurred = squid.restoration(test, np.broadcast_to(average, test.images.shape), average, Oracle())
    for kind in squid.RESTORED:
        assert blurred[kind]["nearer than mean"] == blurred[kind]["grid nearer than mean"] == 0


@pytest.mark.study
def test_the_figures_of_steps_before_a_detector(script, monkeypatch, tmp_path):
    retina = script("retina")
    monkeypatch.setattr(retina, "N_DRAWS", 5)
    split, grade = np.repeat(["train", "test"], 10), np.r_[np.zeros(10, int), [0, 0, 1, 1, 2, 2, 3, 4, 5, 0]]
    images = make_images((20, 16, 16, 3))
    images[12:14] //= 2  # the mild ones are darker
    np.savez(tmp_path / "fundus_dr_128.npz", images=images, grade=grade, split=split, group_ids=np.arange(20))
    monkeypatch.setattr(retina, "FeatureGaussian", partial(tiny, retina.FeatureGaussian))
    rows = retina.preprocessing_rows(tmp_path, 1, {})
    assert [row[0] for row in rows] == list(retina.STEPS)
    assert {len(row) for row in rows} == {len(retina.PARTS["preprocessing"][1])}
    alone = {row[0]: float(row[2]) for row in rows}
    assert alone["none"] == 1
    assert min(alone.values()) >= 0.5


@pytest.mark.study
@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_figures_of_the_retina(script, monkeypatch, tmp_path):
    retina = script("retina")
    monkeypatch.setattr(retina, "N_DRAWS", 5)
    rng = np.random.default_rng(0)
    n = 60
    split = np.repeat(["train", "val", "test"], n // 3)
    grade = np.r_[np.zeros(n // 3, int), np.arange(2 * n // 3) % 6]
    images = make_images((n, 16, 16, 3))
    np.savez(tmp_path / "fundus_dr_128.npz", images=images, grade=grade, split=split, group_ids=np.arange(n))
    monkeypatch.setattr(retina, "SSLAnoVAE", partial(tiny, retina.SSLAnoVAE))
    rows = retina.staging_rows(tmp_path, 2, {"max_epochs": 1})
    assert [row[0] for row in rows][-1].endswith("adjusted Rand index")
    assert all("[" in row[1] for row in rows)
    _, _, features = retina.PARTS["features"]
    assert features.keywords["new"] is retina.FeatureGaussian
    rows_of_maps = retina.staging_rows(tmp_path, 1, {}, new=partial(tiny, retina.FeatureGaussian))
    assert [row[0] for row in rows_of_maps] == [row[0] for row in rows]
    # A perfect score has no width, and draws are of whole patients.
    perfect = {"score": np.arange(20.0)}
    truth = np.arange(20) // 10
    metric = partial(retina.auroc, "score", truth)
    assert retina.mean_with_interval(metric, [perfect], rng.permutation(20)) == "1.000 [1.000, 1.000]"
    assert list(retina.merged(np.arange(6))) == [0, 1, 1, 2, 2, 2]
    monkeypatch.setattr(retina, "N_SCANS", {"train": 8, "val": 4, "test": 4})
    monkeypatch.setattr(retina, "TEST", (2, 2))
    monkeypatch.setattr(retina, "make_oct", partial(retina.make_oct, size=32))
    adapted = []

    class Graph(retina.GraphLayerExtractor):
        def fit(self, X, y=None, X_target=None):
            adapted.append(X_target is not None)
            return super().fit(X)

    monkeypatch.setattr(retina, "UNetLayerExtractor", lambda random_state: Graph())
    monkeypatch.setattr(retina, "AutoEncoder", partial(tiny, retina.AutoEncoder))
    rows = retina.segmentation_rows(tmp_path, 1, {})
    assert len(rows) == 7
    assert all(0 <= float(row[1].split()[0]) <= 1 for row in rows)
    adapted.clear()
    rows = retina.adaptation_rows(tmp_path, 1, {"max_epochs": 1})
    assert len(rows) == 4
    assert sorted(adapted) == [False, False, True]
    assert all(0 <= float(row[1].split()[0]) <= 1 for row in rows)


@pytest.fixture
def ddad(script, tmp_path, monkeypatch):
    ddad = script("ddad")
    monkeypatch.setattr(ddad, "SETS", ddad.SETS[:2])
    monkeypatch.setattr(ddad, "TRIED", {name: ddad.TRIED[name] for name in ["narrow, spatial codes"]})
    rng = np.random.default_rng(0)
    n = 30
    split = np.repeat(["train", "val", "test"], n)
    kinds = np.r_[np.zeros(n, int), rng.choice(3, 2 * n, p=[0.5, 0.25, 0.25])]
    for name in ddad.SETS:
        np.savez(
            tmp_path / f"{name}_64.npz",
            images=make_images((3 * n, 16, 16)),
            labels=kinds > 0,
            split=split,
            class_names=np.array(["normal", ddad.SEEN, ddad.UNSEEN]),
            class_index=kinds,
        )

    def small(variant, *, of=ddad.make, **parameters):
        detector = of(variant, **parameters)
        size = {"hidden_size": 8, "width": 2, "refinement_width": 2, "n_members": 2}
        return detector.set_params(**{name: size[name] for name in size.keys() & detector.get_params()})

    monkeypatch.setattr(ddad, "make", small)
    return ddad


@pytest.mark.study
@pytest.mark.filterwarnings("ignore:ASR-Net points the wrong way")
def test_the_study_of_ddad(ddad, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ddad, "RATIOS", ("0 %", "50 %"))
    monkeypatch.setattr(ddad, "draw_maps", partial(ddad.draw_maps, n=1))
    monkeypatch.setattr(ddad, "may_draw", lambda name, folder: name == "cxr_nih_64")
    ddad.run("--epochs", 1, "--seeds", 2)
    folder = tmp_path / "ddad_1_epochs"
    text = (folder / "table.md").read_text()
    alone, unlabelled, ratio, kinds, tried = text.split(":\n\n")[1:]
    assert "| narrow, spatial codes | 1 | 0." in tried
    for name, n_seeds in {"AEU": 2, "AutoEncoder": 1, "MemAE": 1}.items():
        assert f"| {name} alone | {n_seeds} | 0." in alone
        assert f"| DDAD ({name}), R_intra | {n_seeds} | 0." in alone
        assert f"| DDAD ({name}), R_dual | {n_seeds} | 0." in unlabelled
    rows = [line.split(" | ")[1] for line in ratio.splitlines()[2:6]]
    assert rows == ["0 %", "50 %"] * 2
    assert "| A_inter | normal and bacterial pneumonia | 1 | 0." in kinds
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"cxr_nih_64_histograms.png", "cxr_nih_64_maps.png"}
    n_lines = len((folder / "cells.jsonl").read_text().splitlines())
    ddad.run("--epochs", 1, "--seeds", 2)
    assert len((folder / "cells.jsonl").read_text().splitlines()) == n_lines, "nothing is run twice"


def test_what_is_not_labelled(ddad, tmp_path):
    with np.load(tmp_path / "cxr_pneumonia_64.npz") as arrays:
        kind_of = {image.tobytes(): int(kind) for image, kind in zip(arrays["images"], arrays["class_index"])}

    def kinds(images):
        return np.bincount([kind_of[image.tobytes()] for image in images], minlength=3).tolist()

    val = kinds(ddad.load("cxr_pneumonia_64", tmp_path).unlabelled)
    assert sum(val) == 30
    n = val[0]
    for name, share in (("0 %", 0), ("50 %", 0.5), ("100 %", 1)):
        data = ddad.load(f"cxr_pneumonia_64, {name}", tmp_path)
        found = kinds(data.unlabelled)
        assert sum(found) == n
        assert found[0] == n - int(n * share)
        assert kinds(data.normal) == [30, 0, 0]
    found = kinds(ddad.load(f"cxr_pneumonia_64, {ddad.SEEN}", tmp_path).unlabelled)
    assert found == [n - min(n, val[1]), val[1], 0]
    for k, kind in enumerate((ddad.SEEN, ddad.UNSEEN), start=1):
        rows = data.tests[kind]
        found = kinds(data.test.images[rows])
        assert found[0] == found[k] > 0
        assert sum(found) == 2 * found[k]


def test_the_report_of_parity(script):
    differences = {"score": 3.21e-16, "code": 0.0}
    text = script("parity").report("toy", "a/b, commit 1234567", "Why.\n", differences)
    assert text.startswith("## toy\n\nWhy.\n\nNumbers of a/b, commit 1234567.")
    assert "2 comparisons, at most 3e-16 apart" in text
    assert text.index("| `code` | 0 |") < text.index("| `score` | 3e-16 |")


@pytest.mark.study
def test_the_study_of_synthetic_anomalies(script, folder, monkeypatch, capsys):
    study = script("pii")
    small = "SyntheticAnomalies:network=unet,width=2,synthesis="
    methods = {"Deep SVDD": "DeepSVDD:width=2,pretraining_epochs=0", "FPI": f"{small}fpi"}
    monkeypatch.setattr(study, "LECTURE", methods)
    monkeypatch.setattr(study, "SOURCES", {"FPI": f"{small}fpi", "NSA": f"{small}nsa"})
    monkeypatch.setattr(
        study, "MADE", {**study.SOURCES, "mixture": "SyntheticAnomalies:network=unet,width=2"}
    )
    parts = {"lecture": study.LECTURE, "unlabelled": study.SOURCES, "kinds": study.MADE}
    monkeypatch.setattr(study, "PARTS", parts)
    study.run("--epochs", 1, "--sets", "good")
    of = folder / "pii_1_epochs"
    lecture, unlabelled = (of / "table.md").read_text().split("foreign comes")
    unlabelled, kinds = unlabelled.split("of each kind")
    for method in methods:
        assert f"| {method} | 1 | 0." in lecture
    for method in "FPI", "FPI*", "NSA", "NSA*":
        assert f"| {method} | 1 | 0." in unlabelled
    assert "Deep SVDD" not in unlabelled
    for method in "FPI", "NSA", "mixture":
        assert f"| {method} | 0." in kinds
    assert "Deep SVDD" not in kinds
    assert "| method | anat_paste |" in kinds
    cells = {
        cell["detector"]: cell for cell in map(json.loads, (of / "cells.jsonl").read_text().splitlines())
    }
    assert len(cells) == 6, "FPI is run once for all tables"
    assert cells["FPI"]["ap"] != cells["FPI*"]["ap"], "unlabelled images are sources"
    # No map of Deep SVDD, and one of four anomalous images.
    assert {path.name for path in of.glob("*.npy")} == {"good_FPI.npy"}
    assert np.load(of / "good_FPI.npy").shape == (4, 16, 16)
    assert (of / "good.png").exists()
    study.run("--epochs", 1, "--sets", "good")
    assert len((of / "cells.jsonl").read_text().splitlines()) == 6, "nothing is run twice"


@pytest.mark.study
def test_anomalies_by_kind_are_judged_by_their_masks(script):
    normal = load_chest_xray().images[:16]
    difference = SimpleNamespace(
        intensity_range_=(0, 255), anomaly_map=lambda made: np.abs(made - normal.astype(float))
    )
    found = script("pii").by_kind(difference, normal)
    assert set(found) == set(SYNTHESES)
    assert min(found.values()) > 0.9, found


@pytest.mark.study
def test_the_study_of_steps(script, tmp_path, monkeypatch, capsys):
    study = script("steps")
    split = np.repeat(["train", "val", "test"], 20)
    labels = np.arange(60) % 2 * (np.arange(60) > 19)
    np.savez(tmp_path / "good.npz", images=make_images((60, 16, 16)), labels=labels, split=split)
    monkeypatch.setattr(study, "DATA", "good")
    monkeypatch.setattr(study, "STEPS", (1, 2))
    small = "width=2,hidden_size=16,batch_size=8"
    plain, gan = f"AutoEncoder:{small}", "FAnoGAN:width=2,n_critic=1,max_epochs=1,batch_size=8"
    study.run("--detectors", plain, gan, "--images", 16, 30)
    table = (tmp_path / "steps" / "table.md").read_text()
    for data, label in (("good, 16 images", plain), ("good, 30 images", gan)):
        assert f"| {data} | {label} | val | 1 | 0." in table
        assert f"| {data} | {label} | test | 1 | 0." in table
    parts = study.load("good, 30 images", tmp_path)
    assert len(parts["train"].images) == 30, "20 drawn with replacement"
    # The curve is that of fits that end there.
    cells = [json.loads(line) for line in (tmp_path / "steps" / "cells.jsonl").read_text().splitlines()]
    cell = next(cell for cell in cells if cell["detector"] == plain and cell["data"] == "good, 16 images")
    parts = study.load("good, 16 images", tmp_path)
    shorter = _comparison.make(plain, random_state=0, max_epochs=1).fit(parts["train"].images)
    found = study.auroc(parts["val"].target, -shorter.score_samples(parts["val"].images))
    assert cell["2"]["val"] == pytest.approx(found)


@pytest.mark.study
def test_the_figures_of_unlabelled_images(script):
    study = script("unlabelled")
    rng = np.random.default_rng(0)
    target = rng.permutation(np.repeat([1, -1], [40, 30]))
    rows = study.drawn(target, 0.25, rng)
    assert len(set(rows)) == 40, "as many as there are normal ones"
    assert (target[rows] == -1).sum() == 10
    labels = {"train": np.ones(30, int), "val": target, "test": np.repeat([1, -1], 10)}
    parts = {
        split: Bunch(images=make_images((len(of), 16, 16), seed=k), target=of)
        for k, (split, of) in enumerate(labels.items())
    }
    detector = FeatureGaussian(backbone="filters", input_size=16, random_state=0)
    found = study.evaluate(detector, parts, share=0.5)
    assert set(found) == {"val", "test"}
    within = {"within 0.0", "within estimated"}
    assert set(found["test"]) == {"weight", "estimated", "0.0", "0.25", "0.5", "0.75", "1.0"} | within
    alone = FeatureGaussian(backbone="filters", input_size=16).fit(parts["train"].images)
    scores = -alone.score_samples(parts["test"].images)
    assert found["test"]["0.0"] == pytest.approx(auroc(parts["test"].target, scores))
    assert found["test"]["1.0"] != found["test"]["0.0"]
