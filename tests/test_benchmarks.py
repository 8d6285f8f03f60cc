"""The benchmark scripts: any detector, failing cells, and going on after a kill."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skanomaly.datasets import make_digit_anatomy
from skanomaly.testing import all_detectors, make_images, tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("accuracy", "_data", "_detectors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import accuracy

    monkeypatch.setattr(accuracy, "N_PIXEL_RESAMPLES", 3)
    few = partial(accuracy.metrics.bootstrap_interval, n_resamples=5)
    monkeypatch.setattr(accuracy.metrics, "bootstrap_interval", few)
    return accuracy


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


def cells(accuracy, seeds=1):
    return [
        (name, detector, tiny(cls, random_state=seed))
        for name in ("bad", "good")
        for detector, cls in all_detectors()
        for seed in range(seeds)
    ]


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_every_detector_has_its_cell(accuracy, folder, capsys):
    path = folder / "accuracy.jsonl"
    accuracy.run(cells(accuracy), path, folder)
    n = len(all_detectors())
    results = accuracy.read(path)
    assert [("error" in cell) for cell in results] == [True] * n + [False] * n
    for cell in results[n:]:
        assert 0 <= cell["auroc"][1] <= cell["auroc"][2] <= 1
        assert len(cell["dice"]) == 3
    report = accuracy.report(results)
    for name, _ in all_detectors():
        assert f"| good | {name} | 1 |" in report
        assert f"| bad | {name} | 0 | ValueError: images in X must have pixels" in report


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_a_killed_run_goes_on(accuracy, folder, capsys):
    path, all_cells = folder / "accuracy.jsonl", cells(accuracy)[-1:]
    accuracy.run(all_cells, path, folder)
    whole = path.read_text()
    accuracy.run(all_cells, path, folder)
    assert path.read_text() == whole, "a cell that is there is not run again"
    path.write_text(whole[: len(whole) // 2])
    accuracy.run(all_cells, path, folder)
    again = accuracy.read(path)[-1]
    seconds = {"fit_seconds", "images_per_second"}
    assert {k: v for k, v in again.items() if k not in seconds} == {
        k: v for k, v in json.loads(whole).items() if k not in seconds
    }
    # Another file of the same name is another set.
    arrays = dict(np.load(folder / "good.npz"))
    np.savez(folder / "good.npz", **arrays | {"images": arrays["images"][::-1]})
    accuracy.run(all_cells, path, folder)
    assert len(accuracy.read(path)) == 2


def test_variants_by_name(accuracy):
    from _detectors import make, with_epochs

    detector = with_epochs(make("FAnoGAN:encoder_training=izi,lr=1e-3,n_levels=None", random_state=3), 2)
    assert (detector.encoder_training, detector.lr, detector.n_levels) == ("izi", 1e-3, None)
    assert (detector.max_epochs, detector.encoder_epochs, detector.random_state) == (2, 2, 3)
    with pytest.raises(SystemExit, match="no detector 'Nothing'; there are .*AutoEncoder"):
        make("Nothing")


@pytest.fixture
def fanogan_table(monkeypatch, folder):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("fanogan_table", "_data", "_detectors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import fanogan_table

    arrays = dict(np.load(folder / "good.npz"))
    arrays["labels"][20:] = np.arange(40) % 2
    np.savez(folder / "both.npz", **arrays)
    few = partial(fanogan_table.metrics.bootstrap_interval, n_resamples=5)
    monkeypatch.setattr(fanogan_table.metrics, "bootstrap_interval", few)
    monkeypatch.setattr(fanogan_table, "N_SEARCHED", 8)

    def run(name="both"):
        options = ["--epochs", "3", "--seeds", "2", "--threads", "1", "--sets", name, "--data", folder]
        options += ["--results", folder / "results", "--cache", folder / "cache"]
        monkeypatch.setattr(sys, "argv", ["fanogan_table.py", *map(str, options)])
        fanogan_table.main()
        return (folder / "results" / "fanogan_table.md").read_text()

    fanogan_table.run = run
    return fanogan_table


def test_the_tables_of_fanogan(fanogan_table, folder, capsys):
    first = fanogan_table.run()
    for method in ("ziz", "izi", "izi_f", "AE", "AdvAE", "ALI", "A_D", "iterative", "f-AnoGAN"):
        assert f"| both | {method} | 2 |" in first
    assert "| both | AnoGAN | 1 |" in first
    for better, worse in ("izi_f", "ziz"), ("ziz", "izi"), ("iterative", "AE"), ("ALI", "A_D"):
        assert f"| both | {better} > {worse} |" in first
    for kind in ("curves", "lines", "maps"):
        assert (folder / "results" / f"fanogan_both_{kind}.png").stat().st_size > 10_000
    assert "trained in" in capsys.readouterr().out
    assert fanogan_table.run() == first
    assert "trained in" not in capsys.readouterr().out, "what is there is not trained again"
    with pytest.raises(SystemExit, match="good: split 'val' must hold normal and anomalous images"):
        fanogan_table.run("good")


def test_one_gan_has_three_encoders(fanogan_table, folder):
    memory = fanogan_table.Memory(folder / "cache", verbose=0)
    models = fanogan_table.Models("both", folder, memory, epochs=3, full=False)
    networks = [models.fit(kind, 0).network_ for kind in fanogan_table.ENCODERS]
    for part, same in (("generator", True), ("critic", True), ("encoder", False)):
        states = [getattr(network, part).state_dict() for network in networks]
        equal = [
            all(torch.equal(a, b) for a, b in zip(state.values(), states[-1].values()))
            for state in states[:-1]
        ]
        assert equal == [same, same], part


def test_searched_images_and_cut_offs(fanogan_table):
    """Scores that are the row's number: the searched images must be met by their own labels."""
    rng = np.random.default_rng(0)
    rows = {"val": np.arange(0, 40, 4), "test": np.arange(1, 40, 3)}

    class Made:
        name, searched = "made", rows
        splits = {
            split: fanogan_table.Bunch(target=np.where(rng.uniform(size=40) < 0.5, -1, 1), groups=None)
            for split in ("train", "val", "test")
        }

        def score(self, method, seed):
            part = rows if method == "iterative" else dict.fromkeys(rows, np.arange(40))
            return {split: part[split] + 100 * (split == "test") for split in rows} | {"seconds": 1.0}

    searched = fanogan_table.Comparison(Made(), ["AE", "iterative"], 1, searched=True)
    truth = Made.splits["test"].target[rows["test"]]
    expected = fanogan_table.metrics.auroc(truth, rows["test"])
    assert searched.auroc("AE")[0] == searched.auroc("iterative")[0] == expected
    assert searched.difference("AE", "iterative")[0] == 0
    # Scores of test are 100 higher: a cut-off from val flags all of it, one from test would not.
    assert searched.row("AE")[4:6] == ["1.000", "0.000"], "sensitivity and specificity"
    whole = fanogan_table.Comparison(Made(), ["AE"], 1, searched=False)
    assert whole.auroc("AE")[0] == fanogan_table.metrics.auroc(Made.splits["test"].target, np.arange(40))


def test_orders_are_judged_by_their_intervals(fanogan_table):
    class Made(fanogan_table.Comparison):
        def __init__(self, name, scores, target):
            self.name, self.test = name, fanogan_table.Bunch(target=target, groups=None)
            self.scores = {method: [{"test": score}] for method, score in scores.items()}

    target = np.repeat([1, -1], 40)
    good, coin = -target, np.arange(80) % 2
    names = [name for order in fanogan_table.ORDERS for name in order]
    scores = dict.fromkeys(names, coin) | {"izi_f": good, "izi": good}
    made = Made("made", scores, target)
    verdicts = {row[1]: row[-1] for row in fanogan_table.orderings(made, made)}
    assert verdicts["izi_f > ziz"] == "holds"
    assert verdicts["ziz > izi"] == "reversed"
    assert verdicts["AE > AdvAE"] == "undecided"
    assert made.difference("izi_f", "ziz")[0] == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_parts_of_ssl_anovae(accuracy, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ssl_anovae", raising=False)
    import ssl_anovae

    monkeypatch.setattr(ssl_anovae, "VARIANTS", {"plain": "SSLAnoVAE:width=2,hidden_size=16"})
    monkeypatch.setattr(ssl_anovae, "OTHERS", {"plain one": "AutoEncoder:width=2,hidden_size=16"})
    monkeypatch.setattr(ssl_anovae, "N_SCANS", {"train": 8, "val": 6, "test": 6})
    options = ["--epochs", "1", "--seeds", "1", "--threads", "1", "--sets", "phantom_oct_64"]
    monkeypatch.setattr(sys, "argv", ["ssl_anovae.py", *options, "--results", str(tmp_path)])
    ssl_anovae.main()
    table = (tmp_path / "ssl_anovae.md").read_text()
    assert "| phantom_oct_64 | plain | 1 |" in table
    assert "| phantom_oct_64 | plain one | 1 |" in table


@pytest.fixture
def squid(accuracy, monkeypatch):
    monkeypatch.delitem(sys.modules, "squid", raising=False)
    import squid

    return squid


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_study_of_squid(squid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(squid, "SMALL", (20, 1, 2))
    monkeypatch.setattr(squid, "N_TEST", {"val": 5, "test": 10})
    monkeypatch.setattr(squid, "RIVALS", {"AutoEncoder": "AutoEncoder:width=2,hidden_size=16"})
    monkeypatch.setattr(squid, "COMPONENTS", {"no discriminator": squid.COMPONENTS["no discriminator"]})
    monkeypatch.setattr(squid, "OTHERS", ("k=1",))
    parts = ["--parts", "headline", "components", "robustness", "contamination"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["squid.py", *parts, "--epochs", "1", "--seeds", "2", "--threads", "1", "--results", str(tmp_path)],
    )
    squid.main()
    text = (tmp_path / "squid_1_epochs.md").read_text()
    headline, components, robustness, *shares = text.split(" % normal.")[1:]
    assert "| SQUID | score | 2 |" in headline
    assert "| AutoEncoder | zero |" in headline
    assert "| (the grid before the anomaly) | missing | 1.000 (0.000) | 1.000 (0.000) | 1.000" in headline
    assert "| no discriminator | residual | 1 |" in components
    assert "| k=1 | score | 1 |" in robustness
    assert len(shares) == 3
    assert all("| AutoEncoder | score | 1 |" in share for share in shares)
    assert (tmp_path / "squid_1_epochs_SQUID.png").exists()
    n_lines = len((tmp_path / "squid_1_epochs.jsonl").read_text().splitlines())
    squid.main()
    assert len((tmp_path / "squid_1_epochs.jsonl").read_text().splitlines()) == n_lines, (
        "nothing is run twice"
    )


def test_what_a_reconstruction_of_digits_shows(squid):
    parts = squid.make_digits("90 grids, 75 % normal", None)
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


@pytest.mark.filterwarnings("ignore:.* images cannot show a false alarm rate")
def test_the_figures_of_the_retina(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("retina", "_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import retina

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
    # A perfect score has no width, and draws are of whole patients.
    perfect = {"score": np.arange(20.0)}
    truth = np.arange(20) // 10
    metric = partial(retina.auroc, "score", truth)
    assert retina.mean_with_interval(metric, [perfect], rng.permutation(20)) == "1.000 [1.000, 1.000]"
    assert list(retina.merged(np.arange(6))) == [0, 1, 1, 2, 2, 2]
    monkeypatch.setattr(retina, "N_SCANS", {"train": 8, "val": 4})
    monkeypatch.setattr(retina, "TEST", (2, 2))
    monkeypatch.setattr(retina, "make_oct", partial(retina.make_oct, size=32))
    monkeypatch.setattr(retina, "UNetLayerExtractor", lambda random_state: retina.GraphLayerExtractor())
    monkeypatch.setattr(retina, "AutoEncoder", partial(tiny, retina.AutoEncoder))
    rows = retina.segmentation_rows(tmp_path, 1, {})
    assert len(rows) == 7
    assert all(0 <= float(row[1].split()[0]) <= 1 for row in rows)


@pytest.fixture
def ddad(accuracy, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "ddad", raising=False)
    import ddad

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
    monkeypatch.setattr(ddad, "FOLDER", tmp_path)

    def small(variant, *, of=ddad.make, **parameters):
        detector = of(variant, **parameters)
        size = {"hidden_size": 8, "width": 2, "refinement_width": 2, "n_members": 2}
        return detector.set_params(**{name: size[name] for name in size.keys() & detector.get_params()})

    monkeypatch.setattr(ddad, "make", small)
    return ddad


def test_the_study_of_ddad(ddad, tmp_path, monkeypatch, capsys):
    options = ["--epochs", "1", "--seeds", "2", "--threads", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ddad.py", *options])
    ddad.main()
    text = (tmp_path / "ddad_1_epochs.md").read_text()
    alone, unlabelled, ratio, kinds, tried = text.split(":\n\n")[1:]
    assert "| narrow, spatial codes | 1 | 0." in tried
    for name, n_seeds in {"AEU": 2, "AutoEncoder": 1, "MemAE": 1}.items():
        assert f"| {name} alone | {n_seeds} | 0." in alone
        assert f"| DDAD ({name}), R_intra | {n_seeds} | 0." in alone
        assert f"| DDAD ({name}), R_dual | {n_seeds} | 0." in unlabelled
    assert [line.split(" | ")[0] for line in ratio.splitlines()[2:5]] == ["| 0 %", "| 50 %", "| 100 %"]
    assert "| A_inter | normal and bacterial pneumonia | 1 | 0." in kinds
    for picture in ("histograms", "maps"):
        assert (tmp_path / f"ddad_1_epochs_cxr_nih_64_{picture}.png").exists()
    n_lines = len((tmp_path / "ddad_1_epochs.jsonl").read_text().splitlines())
    ddad.main()
    assert len((tmp_path / "ddad_1_epochs.jsonl").read_text().splitlines()) == n_lines, "nothing is run twice"


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
