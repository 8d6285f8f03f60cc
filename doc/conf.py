"""Sphinx settings; API pages and tables are written here, from what is found and measured."""

import inspect
import sys
from pathlib import Path

import matplotlib
import numpy as np

import skanomaly
from skanomaly import (
    base,
    datasets,
    density,
    encoders,
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
    volumes,
)
from skanomaly._comparison import Cells, select

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from methods_page import list_table, methods_page, title  # noqa: E402

matplotlib.use("agg")

project = "skanomaly"
author = copyright = "skanomaly developers"
version = release = skanomaly.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "myst_parser",
]
exclude_patterns = ["_build", "_templates", "**/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "skanomaly"
html_static_path = ["_static"]
html_css_files = ["skanomaly.css"]
html_theme_options = {
    "show_toc_level": 2,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": {"**": ["page-toc"], "results": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 6,
}
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "methods", "results", "changes", "glossary")}
default_role = "py:obj"
autodoc_typehints = "none"  # the pages say types in words; ArrayLike spelled out fills a line
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# Examples in the order of the gallery: first steps, detectors, then the retina, then what is not run here.
EXAMPLES = [
    "plot_first_detector",
    "plot_thresholds",
    "plot_search",
    "plot_save_and_resume",
    "plot_patches",
    "plot_fanogan",
    "plot_squid_memory",
    "plot_unlabelled",
    "plot_syntheses",
    "plot_fundus_stages",
    "plot_oct_segmentation",
    "plot_oct_real",
    "demo",
    "dask_search",
]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": lambda name: EXAMPLES.index(name.removesuffix(".py")),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "parallel": 2,  # processes of one torch thread each: small networks gain little from a second thread
    "show_signature": False,
    "image_scrapers": ("matplotlib",),
    "nested_sections": False,
}
suppress_warnings = ["config.cache"]
assert sorted(EXAMPLES) == sorted(path.stem for path in HERE.parent.glob("examples/*.py"))


# Pages that are written: what is public is found, one page for each room.

ROOMS = {
    "Detectors": skanomaly,
    "Bases": base,
    "Patches": patches,
    "Ensembles": ensemble,
    "Merging": merging,
    "Volumes": volumes,
    "Features": features,
    "Encoders": encoders,
    "Density": density,
    "Files": io,
    "Preprocessing": preprocessing,
    "Saving": persistence,
    "Labels": labels,
    "Metrics": metrics,
    "Model selection": model_selection,
    "Segmentation": segmentation,
    "Segmenters": segmenters,
    "Layers": layers,
    "Staging": staging,
    "Plotting": plotting,
    "Data sets": datasets,
    "Synthesis": synthesis,
    "Transforms": transforms,
    "Testing": testing,
}


def public_names(module):
    """Exported names; where a module has no `__all__`, its functions."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n
            for n, v in vars(module).items()
            if inspect.isfunction(v) and v.__module__.startswith("skanomaly")
        ]
    exported = set() if module is skanomaly else set(skanomaly.__all__)
    return sorted(n for n in names if not n.startswith("_") and n not in exported)


def write(path, text):
    """Only where it changed: Sphinx reads a newer file again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_api_pages():
    index = title("API") + ".. toctree::\n   :maxdepth: 2\n\n"
    for name, module in ROOMS.items():
        file = name.lower().replace(" ", "_")
        index += f"   {file}\n"
        text = title(name) + f".. currentmodule:: {module.__name__}\n\n"
        text += "" if module is skanomaly else inspect.getdoc(module) + "\n\n"
        text += ".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n"
        write(HERE / "api" / f"{file}.rst", text + "".join(f"   {n}\n" for n in public_names(module)))
    write(HERE / "api" / "index.rst", index)


def false_alarms():
    """Measured with the default parameters: thresholds from training, and calibrated."""
    cells = Cells(HERE.parent / "benchmarks" / "results" / "accuracy" / "cells.jsonl").results()
    names = {name for name, _ in testing.all_detectors()}
    kinds = dict.fromkeys((cell["detector"], cell["data"]) for cell in cells if cell["detector"] in names)
    rows = []
    for name, data in sorted(kinds):
        same = select(cells, detector=name, data=data)
        both = (np.mean([cell[f"false_alarms_{when}"] for cell in same]) for when in ("before", "after"))
        rows.append([name, data, *(f"{rate:.3f}" for rate in both)])
    return list_table(["Detector", "Images", "From training (0.1)", "Calibrated (0.05)"], rows)


def parity():
    """What is compared with the authors' code, method by method."""
    results = HERE.parent / "benchmarks" / "results" / "parity"
    return "\n".join(path.read_text() for path in sorted(results.glob("*.md")))


write_api_pages()
write(HERE / "methods.rst", methods_page())
write(HERE / "guide" / "false_alarms.inc", false_alarms())
write(HERE / "results" / "parity.inc", parity())


def skip_what_is_not_ours(app, what, name, member, skip, options):
    """scikit-learn's own methods are documented there."""
    module = getattr(member, "__module__", None) or ""
    return True if not module.startswith("skanomaly") and what == "class" else skip


def setup(app):
    app.connect("autodoc-skip-member", skip_what_is_not_ours)
