"""Pages that are there, true and run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import tomllib
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpydoc.validate import validate
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.utils import all_estimators
from test_floors import FLOORS

import skanomaly
from skanomaly import (
    datasets,
    density,
    ensemble,
    features,
    io,
    labels,
    layers,
    merging,
    metrics,
    model_selection,
    patches,
    persistence,
    plotting,
    preprocessing,
    segmentation,
    segmenters,
    staging,
    synthesis,
    testing,
    transforms,
)
from skanomaly.base import tells_unlabelled
from skanomaly.features import ImageFeatures
from skanomaly.io import read_folder

ROOT = Path(__file__).parents[1]
MODULES = ["skanomaly", *(m.name for m in pkgutil.walk_packages(skanomaly.__path__, "skanomaly."))]
# Layout rules of numpydoc that do not tell a reader anything here.
IGNORED = {
    "GL01",
    "GL02",
    "GL03",
    "ES01",
    "SA01",
    "EX01",
    "SS05",
    "SS06",
    "RT03",
    "RT04",
    "RT05",
    "YD01",
}
IGNORED |= {"PR08", "PR09", "PR07", "PR06", "RT02"}


MODULES_WITH_PAGES = [
    skanomaly,
    datasets,
    density,
    ensemble,
    features,
    io,
    labels,
    layers,
    merging,
    metrics,
    model_selection,
    patches,
    persistence,
    plotting,
    preprocessing,
    segmentation,
    segmenters,
    staging,
    synthesis,
    testing,
    transforms,
]


def public_objects():
    for module in MODULES_WITH_PAGES:
        names = getattr(
            module,
            "__all__",
            [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("check_")],
        )
        for name in names:
            value = getattr(module, name)
            if name.startswith("_") or getattr(value, "__module__", "").split(".")[0] != "skanomaly":
                continue
            yield f"{value.__module__}.{name}"
            if inspect.isclass(value):
                for method, function in inspect.getmembers(value, inspect.isfunction):
                    if not method.startswith("_") and function.__module__.startswith("skanomaly"):
                        yield f"{value.__module__}.{name}.{method}"


PUBLIC = sorted(set(public_objects()))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_pages(name):
    errors = [error for error in validate(name)["errors"] if error[0] not in IGNORED]
    assert not errors


def test_every_module_says_what_it_is_for():
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__ or name in ("skanomaly._version", "skanomaly.networks"), name


def test_the_extras_named_in_the_documents_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    documents = [ROOT / "README.md", *ROOT.glob("skanomaly/**/*.py")]
    named = {extra for path in documents for extra in re.findall(r"skanomaly\[(\w+)\]", path.read_text())}
    assert named <= set(extras)
    assert {"plot", "progress", "test", "doc"} <= set(extras)


def test_the_readme_walks_from_files_to_scores_and_masks(tmp_path, monkeypatch):
    """Its code, word by word but for the backbone, in a folder of PNG files."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert code.count("FeatureGaussian()") == 1
    train, val = (datasets.load_chest_xray(subset=subset) for subset in ("train", "val"))
    folders = {
        "normal": train.images[:40],
        "more_normal": val.images[val.target == 1],
        "new": val.images[-5:],
    }
    for name, images in folders.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).resize((100, 80)).save(tmp_path / name / f"{i:03}.png")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("FeatureGaussian()", "FeatureGaussian(backbone='filters')"), namespace)
    table = pd.read_csv("scores.csv")
    assert table.columns.tolist() == ["file", "label", "p"]
    X = namespace["new"]
    assert X.shape == (5, 64, 64)
    loaded = persistence.load("detector.skanomaly")
    np.testing.assert_allclose(table["p"], loaded.p_value(X))
    assert table["label"].tolist() == loaded.predict(X).tolist()
    assert table["file"].tolist() == [f"new/{i:03}.png" for i in range(5)]
    for i, mask in enumerate(loaded.segment(X)):
        written = np.asarray(Image.open(f"masks/{i:03}_mask.png")) > 0
        assert written.shape == (80, 100)
        assert abs(written.mean() - mask.mean()) < 0.02


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_the_readme_reads_files_of_any_depth(tmp_path, mode, ending):
    """Fault 6: 16-bit files became white."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    options = re.search(r"read_folder\(folder, (.*?)\) for", code)[1]
    grey = datasets.load_chest_xray().images[0]
    wide = 128 + grey.astype("uint16") * 8  # values of a CT, 128 to 2168
    image = Image.fromarray(wide) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / f"scan.{ending}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="alpha was dropped")
        (X,) = eval(f"read_folder(tmp_path, {options})", {"read_folder": read_folder, "tmp_path": tmp_path})
    expected = wide if mode == "I;16" else np.where(grey > 127, 255, 0) if mode == "1" else grey
    assert X.shape == (64, 64)
    assert X.dtype.kind in "iu"
    if mode != "1":  # dithered
        np.testing.assert_allclose(X, expected, atol=1)


@pytest.mark.parametrize(("name", "detector"), testing.all_detectors())
def test_the_paper_of_a_detector_has_a_link(name, detector):
    """The page of methods links to it."""
    first = re.split(r"\n\.\. \[2\]", inspect.getdoc(detector).split(".. [1] ")[1])[0]
    assert re.search(r"<https?://[^>]+>", first)
    assert re.search(r"\(\d{4}\)", first)


METHODS_PAGE = runpy.run_path(str(ROOT / "doc" / "methods_page.py"))
VARIANTS = [
    (name, variant, code)
    for name, detector in testing.all_detectors()
    for variant, code in METHODS_PAGE["variants"](detector)
]


@pytest.mark.parametrize(("name", "variant", "code"), VARIANTS, ids=[variant for _, variant, _ in VARIANTS])
def test_the_expression_of_a_variant_makes_it(name, variant, code):
    public = {name: getattr(skanomaly, name) for name in skanomaly.__all__}
    made = eval(code, public)
    detector = getattr(made, "__self__", made)  # a variant may be a method
    assert type(detector).__name__ == name
    detector._validate_params()


@pytest.mark.parametrize("code", [code for _, code in METHODS_PAGE["variants"](ImageFeatures)])
def test_the_expression_of_a_classical_method_makes_it(code):
    """Each is a Pipeline with a score."""
    known = {"ImageFeatures": partial(ImageFeatures, backbone="filters", input_size=16)}
    known |= dict(all_estimators()) | {"make_pipeline": make_pipeline}
    known |= {name: getattr(density, name) for name in density.__all__}
    made, X = eval(code, known), testing.make_images((40, 16, 16))
    assert isinstance(made[0], ImageFeatures)
    assert np.isfinite(made.fit(X).score_samples(X)).all()


def test_variants_are_read_whole_and_told_apart():
    written = sum(inspect.getdoc(detector).count("\n    * ") for _, detector in testing.all_detectors())
    assert written == len(VARIANTS) == len({v for _, v, _ in VARIANTS}) == len({c for _, _, c in VARIANTS})
    assert {"AAE", "AdvAE", "BiGAN", "SSIM-AE"} <= {variant for _, variant, _ in VARIANTS}


def test_the_page_of_methods_is_grouped_by_family():
    page = METHODS_PAGE["methods_page"]()
    families = {
        name: METHODS_PAGE["fields"](detector)["Family"] for name, detector in testing.all_detectors()
    }
    _, *sections = re.split(r"^([\w -]+)\n-+\n", page, flags=re.MULTILINE)
    *sections, pipelines, classical = sections
    assert pipelines == "Pipelines"
    assert classical.count("``make_pipeline(ImageFeatures()") == 9
    assert sorted(sections[::2]) == sorted({family.capitalize() for family in families.values()})
    for title, section in zip(sections[::2], sections[1::2]):
        found = re.findall(r"\* - :class:`~skanomaly\.(\w+)`", section)
        assert found == sorted(name for name, family in families.items() if family == title.lower())
        made = [f"* - {variant}\n     - ``{code}``\n" for name, variant, code in VARIANTS if name in found]
        assert all(row in section for row in made)


def components_in_the_glossary():
    """Names of score components by detector, as the table at the end of the glossary has them."""
    text = (ROOT / "doc" / "glossary.rst").read_text()
    found, of = {}, []
    for detectors, names in re.findall(r"^   \* -(.*)\n     - (.*)\n", text, flags=re.MULTILINE):
        of = re.findall(r"skanomaly\.(\w+)`", detectors) or of
        for detector in of:
            found.setdefault(detector, []).extend(re.findall(r'"(\w+)"', names))
    return found


@pytest.mark.filterwarnings("ignore:ASR-Net points the wrong way")
@pytest.mark.parametrize(("name", "detector"), testing.all_detectors())
def test_the_glossary_has_every_score_component(name, detector):
    X, made = testing.make_images(), testing.tiny(detector)
    if "refine" in made.get_params():
        made.set_params(refine=True)
    found = made.fit(X, np.repeat([1, 0], 6) if tells_unlabelled(made) else None).score_components(X)
    if name == "PatchDetector":  # those of the detector inside
        name = "AutoEncoder"
    members = made.get_params().get("detectors")  # an ensemble has a component for each
    expected = dict(members) if members else components_in_the_glossary()[name]
    assert sorted(expected) == sorted(found)


def test_the_drawing_of_the_house_has_its_floors():
    """The contributors' page shows the rooms of each floor, the highest first."""
    drawing = re.search(r"```\n(testing.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    floors = [
        {room for line in floor.splitlines() for room in line[:39].split()} for floor in drawing.split("\n\n")
    ]
    assert floors[::-1] == FLOORS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_that_are_there(page):
    links = re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text())
    assert all((ROOT / link).exists() for link in links)


# Words that leave a reader waiting for the thing that is described.
LATE = {"Of", "As", "And", "What", "Where"}


def descriptions(doc):
    """First lines of a docstring and of the entries of its sections."""
    lines = inspect.cleandoc(doc).splitlines()
    yield lines[0]
    for above, line in zip(lines, lines[1:]):
        if line.startswith("    ") and above and not above.startswith((" ", ":", "..", ">>>")):
            yield line.strip()


def late(texts):
    return [text for text in texts if re.match(r"\W*(\w*)", text)[1] in LATE]


def test_descriptions_in_the_guide_begin_with_their_subject():
    pages = [*ROOT.glob("doc/guide/*.rst"), *ROOT.glob("doc/*.rst")]
    items = [
        item
        for page in pages
        for item in re.findall(r"^ *(?:\* - |\* |- )(.*)", page.read_text(), flags=re.MULTILINE)
    ]
    items += re.findall(
        r"^   \w.*\n      (.*)", (ROOT / "doc" / "glossary.rst").read_text(), flags=re.MULTILINE
    )
    assert len(items) > 100
    assert not late(items)


DOCSTRINGS = ast.Module, ast.ClassDef, ast.FunctionDef


@pytest.mark.parametrize("path", sorted(ROOT.glob("skanomaly/**/*.py")), ids=lambda path: path.stem)
def test_descriptions_in_docstrings_begin_with_their_subject(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCSTRINGS)]
    docs = [doc for node in nodes if (doc := ast.get_docstring(node))]
    assert not late(text for doc in docs for text in descriptions(doc))


@pytest.mark.parametrize(("name", "detector"), testing.all_detectors())
def test_descriptions_that_detectors_share_begin_with_their_subject(name, detector):
    """The words on shared parameters are put into docstrings when a class is made."""
    assert not late(descriptions(inspect.getdoc(detector)))
