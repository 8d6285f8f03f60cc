"""Measured figures: tables are those of the stored cells, and prose quotes what the tables say."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from skanomaly import _comparison

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

#: File -> sentences with figures as {} -> the cell of a table for each: "study: row / row / column". The row
#: is the first that begins with these cells; "sd" is the standard deviation, ";" parts cells of one figure.
PAPERS_DRAEM = "DRAEM:synthesis=perlin,probability=0.5,reconstruction_weight=1.0,ssim_weight=1.0"

QUOTED = {
    "doc/results.md": {
        "lift AE-U on pneumonia from {} to {};": (
            "ddad: AEU alone / cxr_pneumonia_64 AUROC",
            "ddad: DDAD (AEU), A_inter / cxr_pneumonia_64 AUROC",
        ),
    },
    "doc/results/ddad.md": {
        "chest X-rays of pneumonia: {} with AE-U, {} and {} with AE and MemAE.": (
            "ddad: DDAD (AEU), A_inter / cxr_pneumonia_64 AUROC",
            "ddad: DDAD (AutoEncoder), A_inter / cxr_pneumonia_64 AUROC",
            "ddad: DDAD (MemAE), A_inter / cxr_pneumonia_64 AUROC",
        ),
        "that are all normal it is {},": ("ddad: cxr_pneumonia_64 / 0 % / A_inter AUROC",),
        "with AE: {} for {} on cxr_nih, {} for {} on brain_mri.": (
            "ddad: DDAD (AutoEncoder), A_inter / cxr_nih_64 AUROC",
            "ddad: AutoEncoder alone / cxr_nih_64 AUROC",
            "ddad: DDAD (AutoEncoder), A_inter / brain_mri_64 AUROC",
            "ddad: AutoEncoder alone / brain_mri_64 AUROC",
        ),
        "is the exception, with {} on both:": (
            "ddad: DDAD (AEU), A_intra / cxr_nih_64 AUROC; ddad: DDAD (AEU), A_intra / brain_mri_64 AUROC",
        ),
        "on cxr_pneumonia is {} in the mean of three seeds, with a standard deviation of {};": (
            "ddad: DDAD (AEU), R_intra / cxr_pneumonia_64 AUROC",
            "ddad: DDAD (AEU), R_intra / cxr_pneumonia_64 AUROC sd",
        ),
        "R_dual on brain_mri is {} where A_inter is {}.": (
            "ddad: DDAD (AutoEncoder), R_dual / brain_mri_64 AUROC",
            "ddad: DDAD (AutoEncoder), A_inter / brain_mri_64 AUROC",
        ),
        "turns R_dual round ({}, {}),": (
            "ddad: narrow / R_dual AUROC",
            "ddad: narrow, 100 epochs / R_dual AUROC",
        ),
        "is above all else there ({}).": ("ddad: narrow, spatial codes / A_rec AUROC",),
    },
    "doc/results/fanogan.md": {
        "f-AnoGAN has an AUC of {}, an autoencoder {} and ALI {}.": (
            "fanogan: cxr_pneumonia_64 / izi_f / AUC",
            "fanogan: cxr_pneumonia_64 / AE / AUC",
            "fanogan: cxr_pneumonia_64 / ALI / AUC",
        ),
        "On brains ALI has {}, the autoencoder {} and f-AnoGAN {},": (
            "fanogan: brain_mri_64 / ALI / AUC",
            "fanogan: brain_mri_64 / AE / AUC",
            "fanogan: brain_mri_64 / izi_f / AUC",
        ),
        "as good as f-AnoGAN on chest X-rays, {}, and below it on brains, {}.": (
            "fanogan: cxr_pneumonia_64 / A_D / AUC",
            "fanogan: brain_mri_64 / A_D / AUC",
        ),
        "is below it by {} and {}.": (
            "fanogan: cxr_pneumonia_64 / AE > AdvAE / 335 / difference",
            "fanogan: brain_mri_64 / AE > AdvAE / 282 / difference",
        ),
        "is the worst training on chest X-rays, {},": ("fanogan: cxr_pneumonia_64 / ziz / AUC",),
    },
    "doc/results/ssl_anovae.md": {
        "before the rest makes {} of {} on fundus_dr, {} of {} on cxr_nih and {} of {} on the phantom,": (
            "ssl_anovae: fundus_dr_64 / second encoder trained before / AUROC",
            "ssl_anovae: fundus_dr_64 / as it is / AUROC",
            "ssl_anovae: cxr_nih_64 / second encoder trained before / AUROC",
            "ssl_anovae: cxr_nih_64 / as it is / AUROC",
            "ssl_anovae: phantom_oct_64 / second encoder trained before / AUROC",
            "ssl_anovae: phantom_oct_64 / as it is / AUROC",
        ),
    },
    "doc/results/squid.md": {
        "has an AUROC of {} on chest X-rays of 128 x 128 pixels, and of {} on those of 64 x 64 pixels,": (
            "squid: discriminator / cxr_pneumonia_128",
            "squid: discriminator / cxr_pneumonia_64",
        ),
        "on grids of digits its mean is {}:": ("squid: SQUID / discriminator / 1 / mean",),
        '("feature") has {}, {} and {}.': (
            "squid: feature / cxr_pneumonia_128",
            "squid: feature / cxr_pneumonia_64",
            "squid: SQUID / feature / 1 / mean",
        ),
        "The residual, {} in the mean and {} on chest X-rays of 128 x 128 pixels,": (
            "squid: SQUID / residual / 1 / mean",
            "squid: residual / cxr_pneumonia_128",
        ),
        "AutoEncoder has {} on the grids and MemAE {}.": (
            "squid: AutoEncoder / score / 1 / mean",
            "squid: MemAE / score / 1 / mean",
        ),
        "{} without the one and {} without the other, for {}.": (
            "squid: no space-awareness / feature / 1 / mean",
            "squid: no queue: learned items / feature / 1 / mean",
            "squid: SQUID / feature / 1 / mean",
        ),
        "the right digit in {} of the cells where a digit is missing and {} of those with a zero.": (
            "squid: SQUID / missing / recognised",
            "squid: SQUID / zero / recognised",
        ),
    },
    "doc/results/backbones.md": {
        'FeatureGaussian on "imagenet" at its own 224 pixels ({}), by': (
            "backbones: imagenet / FeatureGaussian",
        ),
        "FeatureGaussian has {}; of heads of rows,": ("backbones: filters / FeatureGaussian",),
        'best on "imagenet" ({} and {}), the principal component classifier on "filters" ({}).': (
            "backbones: imagenet / LOF",
            "backbones: imagenet / CBLOF",
            "backbones: filters / PCC",
        ),
        "cost FeatureGaussian most: {} at 128 pixels, {} at 64, where PaDiM ({}) and PatchCore ({}) are": (
            "backbones: imagenet, 128 px / FeatureGaussian",
            "backbones: imagenet, 64 px / FeatureGaussian",
            "backbones: imagenet, 64 px / PaDiM",
            "backbones: imagenet, 64 px / PatchCore",
        ),
        "gives FeatureGaussian {} (stage 4) to {} (stage 6).": (
            "backbones: imagenet, stage 4 / FeatureGaussian",
            "backbones: imagenet, stage 6 / FeatureGaussian",
        ),
    },
    "doc/results/accuracy.md": {
        "reconstruction of brains: an AUROC of {} and an average precision of pixels of {}, in": (
            "accuracy: brain_mri_64 / DenoisingAutoEncoder / AUROC",
            "accuracy: brain_mri_64 / DenoisingAutoEncoder / pixel AP",
        ),
        "one seed, where AutoEncoder has {} and {}.": (
            "accuracy: brain_mri_64 / AutoEncoder / AUROC",
            "accuracy: brain_mri_64 / AutoEncoder / pixel AP",
        ),
        "On pneumonia it has {}, between AutoEncoder and AEU, {}.": (
            "accuracy: cxr_pneumonia_64 / DenoisingAutoEncoder / AUROC",
            "accuracy: cxr_pneumonia_64 / AEU / AUROC",
        ),
        "average precision of pixels of {}, the mean": ("accuracy: brain_mri_64 / DRAEM / pixel AP",),
        "losses it has {}, in one seed, and PaDiM {}. Half of the training steps give {} and a quarter {},": (
            f"accuracy: brain_mri_64 / {PAPERS_DRAEM} / pixel AP",
            "accuracy: brain_mri_64 / PaDiM / pixel AP",
            "accuracy: brain_mri_64 / DRAEM:max_epochs=55 / pixel AP",
            "accuracy: brain_mri_64 / DRAEM:max_epochs=28 / pixel AP",
        ),
        "means of three seeds with deviations of {} and {}:": (
            "accuracy: brain_mri_64 / DRAEM:max_epochs=55 / pixel AP sd",
            "accuracy: brain_mri_64 / DRAEM:max_epochs=28 / pixel AP sd",
        ),
        "ScoreEnsemble, has {}, within the seeds of DRAEM alone; its best Dice, {}, is that of DRAEM, {},": (
            "accuracy: brain_mri_64 / PaDiM + DRAEM / pixel AP",
            "accuracy: brain_mri_64 / PaDiM + DRAEM / best Dice",
            "accuracy: brain_mri_64 / DRAEM / best Dice",
        ),
        "PRO is higher, {} for {}.": (
            "accuracy: brain_mri_64 / PaDiM + DRAEM / PRO",
            "accuracy: brain_mri_64 / DRAEM / PRO",
        ),
        "It tells images with an AUROC of {}.": ("accuracy: brain_mri_64 / PaDiM + DRAEM / 1 / AUROC",),
        "with an AUROC of {} on pneumonia, {} on cxr_nih and {} on brains; AutoEncoder has {}, {} and {}.": (
            "accuracy: cxr_pneumonia_64 / SyntheticAnomalies / 1 / AUROC",
            "accuracy: cxr_nih_64 / SyntheticAnomalies / 1 / AUROC",
            "accuracy: brain_mri_64 / SyntheticAnomalies / 3 / AUROC",
            "accuracy: cxr_pneumonia_64 / AutoEncoder / 1 / AUROC",
            "accuracy: cxr_nih_64 / AutoEncoder / 3 / AUROC",
            "accuracy: brain_mri_64 / AutoEncoder / 3 / AUROC",
        ),
        "precision of {}, the mean of three seeds that are all above .27;": (
            "accuracy: brain_mri_64 / SyntheticAnomalies / pixel AP",
        ),
        "with a U-Net, which has to learn all, of {}.": (
            "accuracy: brain_mri_64 / SyntheticAnomalies:network=unet / pixel AP",
        ),
        "tells images with one of {}.": ("accuracy: brain_mri_64 / FeatureGaussian + DRAEM / 1 / AUROC",),
    },
    "doc/results/students.md": {
        "have a PRO of {}, the autoencoder {}; in grids of digits they have {} and the autoencoder {},": (
            "students: brain_mri_64 / all p",
            "students: brain_mri_64 / l2-AE",
            "students: DigitAnatomy, 200 grids / all p",
            "students: DigitAnatomy, 200 grids / l2-AE",
        ),
        "a teacher's descriptors ({}).": ("students: DigitAnatomy, 200 grids / 1-NN",),
        "p = 17 with {} and {}, and p = 65 does best in digits ({}).": (
            "students: brain_mri_64 / p = 17",
            "students: DigitAnatomy, 200 grids / p = 17",
            "students: DigitAnatomy, 200 grids / p = 65",
        ),
    },
    "skanomaly/detectors/synthetic_anomalies.py": {
        "it has an AUROC of {} (three seeds), the U-Net of {} (one": (
            "accuracy: brain_mri_64 / SyntheticAnomalies / 3 / AUROC",
            "accuracy: brain_mri_64 / SyntheticAnomalies:network=unet / 1 / AUROC",
        ),
    },
    "skanomaly/detectors/draem.py": {
        "they have an AUROC of {} (three seeds), and the paper's synthesis and losses {} (one": (
            "accuracy: brain_mri_64 / DRAEM / 3 / AUROC",
            f"accuracy: brain_mri_64 / {PAPERS_DRAEM} / 1 / AUROC",
        ),
    },
    "doc/results/pii.md": {
        "with an AUROC of {} and {} (Deep SVDD {} and {}); on": (
            "pii: PII / cxr_pneumonia_64 AUROC",
            "pii: PII / cxr_nih_64 AUROC",
            "pii: Deep SVDD / cxr_pneumonia_64 AUROC",
            "pii: Deep SVDD / cxr_nih_64 AUROC",
        ),
        "last ({}), and Deep SVDD first ({}).": (
            "pii: PII / brain_mri_64 AUROC",
            "pii: Deep SVDD / brain_mri_64 AUROC",
        ),
        "FPI has {} on pneumonia, probably": ("pii: FPI / cxr_pneumonia_64 AUROC",),
        "FPI rises from {} to {} on pneumonia, NSA from {} to {}, CutPaste end-to-end from {} to {} on": (
            "pii: FPI / cxr_pneumonia_64 AUROC",
            "pii: FPI* / cxr_pneumonia_64 AUROC",
            "pii: NSA / cxr_pneumonia_64 AUROC",
            "pii: NSA* / cxr_pneumonia_64 AUROC",
            "pii: CutPaste e2e / brain_mri_64 AUROC",
            "pii: CutPaste e2e* / brain_mri_64 AUROC",
        ),
        "on pneumonia it falls from {} to {}, and PII on cxr_nih from {} to {}. NSA has {} on cxr_nih,": (
            "pii: CutPaste e2e / cxr_pneumonia_64 AUROC",
            "pii: CutPaste e2e* / cxr_pneumonia_64 AUROC",
            "pii: PII / cxr_nih_64 AUROC",
            "pii: PII* / cxr_nih_64 AUROC",
            "pii: NSA / cxr_nih_64 AUROC",
        ),
        "AnatPaste with a pixel AUROC of {}, CutPaste end-to-end {} and by its Gaussian {}, NSA {}, DRAEM,": (
            "pii: AnatPaste / anat_paste",
            "pii: CutPaste e2e / cutpaste",
            "pii: CutPaste / cutpaste",
            "pii: NSA / nsa",
        ),
        "from the mixture, {}, and SyntheticAnomalies, which does, too, {}. FPI and PII have {} both:": (
            "pii: DRAEM / mixture",
            "pii: mixture / mixture",
            "pii: FPI / fpi; pii: PII / pii",
        ),
        "finds most: none below {}.": ("pii: DRAEM / fpi",),
    },
    "doc/results/unlabelled.md": {
        "on pneumonia the AUROC rises from {} to {}, on brain_mri from {} to {}.": (
            "unlabelled: cxr_pneumonia_128 / 50 % / test / weight 0",
            "unlabelled: cxr_pneumonia_128 / 50 % / test / with it",
            "unlabelled: brain_mri_128 / 50 % / test / weight 0",
            "unlabelled: brain_mri_128 / 50 % / test / with it",
        ),
        "like sharpness the AUROC rises from {} to {}.": (
            "unlabelled: cxr_pneumonia_128 / 50 % / alone, within",
            "unlabelled: cxr_pneumonia_128 / 50 % / the same, within",
        ),
        "A weight of 1 would reach {} where half": (
            "unlabelled: cxr_pneumonia_128 / 50 % / test / weight 1",
        ),
        "a weight of 1 falls to {} on cxr_nih.": ("unlabelled: cxr_nih_128 / 0 % / test / weight 1",),
    },
    "doc/results/retina.md": {
        "against none is {}, chance, and that of severe grades {} with": (
            "retina: detection, any grade against none / SSLAnoVAE, stages by residuals",
            "retina: detection, severe or worse against none / SSLAnoVAE, stages by residuals",
        ),
        "tell severe grades from healthy eyes ({}), and": (
            "retina: detection, severe or worse against none / FeatureGaussian, stages by maps",
        ),
        "with {} by stages of their maps, and with {} by their score alone.": (
            "retina: AUROC of severity, severe or worse against milder / FeatureGaussian, stages by maps",
            "retina: AUROC of severity, severe or worse against milder / rival",
        ),
        "names {} of the pixels right, without adaptation {}, and with labels of this device {}.": tuple(
            f"retina: {row} / right layer, share of pixels"
            for row in ("U-Net, adapted", "U-Net, not adapted", "U-Net, labels of the second device")
        ),
        "Dice {}, {} and {}.": tuple(
            f"retina: {row} / Dice of fluid"
            for row in ("U-Net, adapted", "U-Net, not adapted", "U-Net, labels of the second device")
        ),
        "alone tells mild ones from healthy eyes with {} before any step, and with {} once": (
            "retina: none / mild by brightness",
            "retina: histogram / mild by brightness",
        ),
        "any grade against none has {} without a step, {} after": (
            "retina: none / any grade",
            "retina: crop, histogram / any grade",
        ),
        "and {} after local contrast": ("retina: local contrast / any grade",),
        "Dice {} against {}.": ("retina: layers, graph / all", "retina: residual, blocks of 4, oracle / all"),
        "finds next to nothing ({}); one that was shown fluid finds most ({}).": (
            "retina: layers, U-Net / all",
            "retina: layers, U-Net shown fluid / all",
        ),
    },
    "doc/guide/reproducibility.rst": {
        "AUROC of an autoencoder varies by {} between seeds, that of a GAN by {} to {}": (
            "accuracy: cxr_nih_64 / AutoEncoder / 3 / AUROC sd",
            "accuracy: brain_mri_64 / FAnoGAN / 3 / AUROC sd",
            "accuracy: cxr_nih_64 / FAnoGAN / 3 / AUROC sd",
        ),
    },
    "skanomaly/detectors/anogan.py": {
        "the score has an AUROC of {}, and of {} among images of like sharpness": (
            "accuracy: cxr_pneumonia_64 / AnoGAN / 1 / AUROC",
            "accuracy: cxr_pneumonia_64 / AnoGAN / 1 / AUROC within strata",
        ),
    },
    "skanomaly/detectors/squid.py": {
        'On chest X-rays of pneumonia "discriminator" has a mean AUROC of {} and "feature" of {} ': (
            "squid: discriminator / cxr_pneumonia_64",
            "squid: feature / cxr_pneumonia_64",
        ),
    },
    "skanomaly/detectors/ddad.py": {
        "has an AUROC of {} for R_dual and of {} for A_inter on one data set": (
            "ddad: DDAD (AEU), R_dual / cxr_pneumonia_64 AUROC",
            "ddad: DDAD (AEU), A_inter / cxr_pneumonia_64 AUROC",
        ),
    },
}


def figure(reference):
    """The number that a reference stands for."""
    study, _, place = reference.removesuffix(" sd").partition(": ")
    *row, column = place.split(" / ")
    head = []
    for line in "\n\n".join(path.read_text() for path in sorted((RESULTS / study).glob("*.md"))).splitlines():
        cells = line.strip("| ").split(" | ")
        head = [] if not line.startswith("|") else head or cells
        if column in head and cells[: len(row)] == row:
            mean, *spread = re.findall(r"-?\d+\.\d+", cells[head.index(column)].partition("[")[0])
            return float(spread[0] if reference.endswith(" sd") else mean)
    raise AssertionError(f"there is no {reference}")


def prose(text):
    """Text on one line, without code blocks and tables."""
    return re.sub(r"\s+", " ", re.sub(r"```.*?```|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE))


def sentence(template):
    return re.escape(template).replace(re.escape("{}"), r"(-?\d?\.\d+)")


@pytest.mark.parametrize(
    ("file", "template"), [(file, one) for file, quoted in QUOTED.items() for one in quoted]
)
def test_quoted_figures_are_those_of_the_tables(file, template):
    found = re.search(sentence(template), prose((ROOT / file).read_text()))
    assert found, f"{file} does not say: {template}"
    for quoted, references in zip(found.groups(), QUOTED[file][template], strict=True):
        half = 0.5 * 10.0 ** -len(quoted.partition(".")[2])
        for reference in references.split("; "):
            assert abs(float(quoted) - figure(reference)) < half + 1e-9, f"{reference} is {figure(reference)}"


def test_no_figure_is_quoted_without_its_table():
    """On the pages of results no figure at all; elsewhere none in a sentence about an AUROC."""
    pages = [ROOT / "doc" / "results.md", *ROOT.glob("doc/results/*.md")]
    others = [ROOT / "README.md", *ROOT.glob("doc/guide/*.rst"), *ROOT.glob("skanomaly/**/*.py")]
    for path in pages + others:
        text = prose(path.read_text())
        for template in QUOTED.get(str(path.relative_to(ROOT)), ()):
            text = re.sub(sentence(template), "", text)
        wanted = r"(?<!\d)\d?\.\d\d" if path in pages else r"AUROCs? [^.=\n]{0,40}(?<!\d)0?\.\d\d"
        assert not re.findall(wanted, text), path


@pytest.mark.parametrize(
    "study",
    ["accuracy", "backbones", "ddad", "pii", "ssl_anovae", "squid", "steps", "students", "unlabelled"],
)
def test_tables_are_those_of_the_stored_cells(study, monkeypatch, tmp_path, capsys):
    """But for marks of cells whose code has changed since, and for references that are no cells."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "studies")
    monkeypatch.delitem(sys.modules, study, raising=False)
    module = importlib.import_module(study)
    monkeypatch.setattr(module, "references", lambda name: [], raising=False)
    shutil.copytree(RESULTS / study, tmp_path / study)
    options = ["--seeds", "0", "--threads", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [study, *options])
    module.main()

    def lines(folder, file):
        text = (folder / study / file).read_text().replace(f" {_comparison.STALE}", "")
        left_out = "| (the ", _comparison.STALE
        return [line for line in text.splitlines() if line and not line.startswith(left_out)]

    for file in ("table.md", "summary.md") if study == "accuracy" else ("table.md",):
        made = lines(tmp_path, file)
        assert made == lines(RESULTS, file), f"write them anew: python {module.__file__} --seeds 0"


def test_default_numbers_of_steps_are_those_that_serve():
    """Within .02 AUROC of the best number on `val`, for every number of images, and named on the page.

    A class has one number for all its settings: their mean counts.
    """
    lines = (RESULTS / "steps" / "table.md").read_text().splitlines()
    head, _, *rows = (line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
    page = prose((ROOT / "doc" / "results" / "steps.md").read_text())
    found = {}
    for data, label, split, _, *cells in rows:
        if split == "val" and _comparison.STALE not in cells[0]:
            values = [float(cell.split()[0]) for cell in cells]
            found.setdefault((data, label.partition(":")[0]), []).append(values)
    assert len(found) >= 12
    for (data, name), curves in found.items():
        detector = _comparison.make(name)
        last = "encoder_epochs" if hasattr(detector, "encoder_epochs") else "max_epochs"
        steps, curve = detector._steps[last], np.mean(curves, axis=0)
        assert curve[head[4:].index(str(steps))] > curve.max() - 0.02, (data, name)
        assert re.search(rf"{steps:,} for [^.\d]*{name}\b", page), name
