"""Sphinx settings; API pages and the table of methods are written here, from what is found."""

import inspect
import re
from pathlib import Path

import matplotlib

import skanomaly
from skanomaly import datasets, metrics, model_selection, persistence, plotting, segmentation, testing

matplotlib.use("agg")
HERE = Path(__file__).parent

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
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 6,
}
html_show_sourcelink = False
html_sidebars = {"index": [], "methods": [], "changes": [], "glossary": []}
default_role = "py:obj"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "show_signature": False,
    "image_scrapers": ("matplotlib",),
    "nested_sections": False,
}
suppress_warnings = ["config.cache"]


# API pages: what is public is found.

ROOMS = [
    (skanomaly, "Detectors", "skanomaly"),
    (persistence, "Saving", "skanomaly.persistence"),
    (metrics, "Metrics", "skanomaly.metrics"),
    (model_selection, "Model selection", "skanomaly.model_selection"),
    (segmentation, "Segmentation", "skanomaly.segmentation"),
    (plotting, "Plotting", "skanomaly.plotting"),
    (datasets, "Data sets", "skanomaly.datasets"),
    (testing, "Testing", "skanomaly.testing"),
]


def public_names(module):
    """Exported names; where a module has no `__all__`, its functions."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n
            for n, v in vars(module).items()
            if inspect.isfunction(v) and v.__module__.startswith("skanomaly")
        ]
    return sorted(n for n in names if not n.startswith("_"))


def write(path, text):
    """Only where it changed: Sphinx reads a newer file again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def title(text, line="="):
    return f"{text}\n{line * len(text)}\n\n"


def api_page():
    text = title("API")
    for module, name, path in ROOMS:
        about = "" if module is skanomaly else (module.__doc__ or "").split("\n\n")[0].strip() + "\n\n"
        names = "".join(f"   {public}\n" for public in public_names(module))
        text += title(name, "-") + about + f".. currentmodule:: {path}\n\n"
        text += f".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n{names}\n"
    return text


def fields(detector):
    """The field list at the head of a detector's Notes."""
    notes = inspect.getdoc(detector).split("\nNotes\n-----\n")[1]
    found = re.findall(r"^:([\w ]+): (.*(?:\n[ ]+.*)*)", notes, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def paper(detector):
    """Link to the first reference."""
    reference = re.split(r"\n\.\. \[2\]", inspect.getdoc(detector).split(".. [1] ")[1])[0]
    authors, year = re.match(r"([^(]*?),? \((\d{4})\)", re.sub(r"\s+", " ", reference)).groups()
    first = authors.split(",")[0] + (" et al." if authors.count(".,") else "")
    return f"`{first} {year} <{re.search(r'<([^>]+)>', reference).group(1)}>`__"


def methods_page():
    text = title("Methods")
    text += "What each detector learns and how it decides, from its own page.\n\n"
    head = "Detector", "Paper", *testing.METHOD_FIELDS
    text += ".. list-table::\n   :header-rows: 1\n   :class: methods\n\n"
    rows = [head]
    for name, detector in testing.all_detectors():
        found = fields(detector)
        cells = [found[field] for field in testing.METHOD_FIELDS]
        rows.append([f":class:`~skanomaly.{name}`", paper(detector), *cells])
    for row in rows:
        text += "".join(f"   {'* -' if i == 0 else '  -'} {cell}\n" for i, cell in enumerate(row))
    return text


write(HERE / "api" / "index.rst", api_page())
write(HERE / "methods.rst", methods_page())


def skip_what_is_not_ours(app, what, name, member, skip, options):
    """scikit-learn's own methods are documented there."""
    module = getattr(member, "__module__", None) or ""
    return True if not module.startswith("skanomaly") and what == "class" else skip


def setup(app):
    app.connect("autodoc-skip-member", skip_what_is_not_ours)
