"""The page of methods, made of the fields at the head of each detector's Notes."""

import inspect
import re
from itertools import groupby

from skanomaly import testing
from skanomaly.features import ImageFeatures

#: In the order of the page. A family that is not named here follows, without a sentence.
FAMILIES = {
    "reconstruction": "A network learns to repeat normal images. What it cannot repeat is anomalous.",
    "adversarial": "A critic or discriminator teaches what normal images, or their codes, look like.",
    "memory": "The decoder sees only what normal images left in a memory.",
    "self-supervised": "A task that needs no labels teaches features: to recognise two views of one image.",
    "synthetic anomalies": "A network learns to find what was worked into normal images.",
    "one-class": "A network learns to give all normal images nearly the same code.",
    "ensemble": "Several networks are trained. Where they disagree, an image is anomalous.",
    "distillation": "Students learn to give the features of a frozen network, for normal images only.",
    "composite": "A detector that holds others and judges by them.",
}

INTRODUCTION = """\
Detectors by family, with how each one decides; their own pages say more. They are trained on normal images
if nothing else is said. Below each family are the variants that papers have names for, with the expression
that makes them.

"""

#: Options of a table of expressions.
VARIANTS = "   :class: methods\n   :widths: 40 60\n"

PIPELINES = """\
Classical methods judge rows of features of a frozen network, and are Pipelines of scikit-learn behind
:class:`~skanomaly.features.ImageFeatures`, as the guide shows in :doc:`guide/classical`. They have no map.

"""


def title(text, line="="):
    return f"{text}\n{line * len(text)}\n\n"


def list_table(head, rows, options=""):
    text = f".. list-table::\n   :header-rows: 1\n{options}\n"
    for row in (head, *rows):
        text += "".join(f"   {'* -' if i == 0 else '  -'} {cell}\n" for i, cell in enumerate(row))
    return text + "\n"


def fields(detector):
    """The field list at the head of a detector's Notes."""
    notes = inspect.getdoc(detector).split("\nNotes\n-----\n")[1]
    found = re.findall(r"^:([\w ]+):(?=\s)(.*(?:\n[ ]+.*)*)", notes, flags=re.MULTILINE)
    # A citation has its number on that page only.
    return {name: re.sub(r"\s+", " ", re.sub(r"\s*\[\d+\]_", "", text)).strip() for name, text in found}


def variants(detector):
    """Named variants, as (name, the expression that makes it)."""
    return re.findall(r"\* (.+?): ``(.+?)``", fields(detector).get("Variants", ""))


def method(detector):
    """Name of the method, with a link to its first reference."""
    reference = re.split(r"\n\.\. \[2\]", inspect.getdoc(detector).split(".. [1] ")[1])[0]
    authors, year = re.match(r"([^(]*?),? \((\d{4})\)", re.sub(r"\s+", " ", reference)).groups()
    first = authors.split(",")[0] + (" et al." if authors.count(".,") else "")
    link = f"`{first} {year} <{re.search(r'<([^>]+)>', reference).group(1)}>`__"
    return f"{inspect.getdoc(detector).splitlines()[0].rstrip('.')}, {link}"


def place(item):
    """Where a (name, detector) stands on the page: its family's number, and the family."""
    family, known = fields(item[1])["Family"], list(FAMILIES)
    return known.index(family) if family in known else len(known), family


def methods_page():
    text = title("Methods") + INTRODUCTION
    for (_, family), members in groupby(sorted(testing.all_detectors(), key=place), place):
        rows, named = [], []
        for name, detector in members:
            found = fields(detector)
            cells = [found[field] for field in ("Score", "Map", "Departures")]
            if found["Trained on"] != "normal images":
                cells[0] = f"{cells[0]}. Trained on {found['Trained on']}"
            rows.append([f":class:`~skanomaly.{name}`", method(detector), *cells])
            named += [[variant, f"``{code}``"] for variant, code in variants(detector)]
        text += title(family.capitalize(), "-") + FAMILIES.get(family, "") + "\n\n"
        options = "   :class: methods\n   :widths: 14 20 20 12 34\n"
        text += list_table(["Detector", "Method", "Score", "Map", "Departures"], rows, options)
        if named:
            text += list_table(["Variant", "Made by"], named, VARIANTS)
    made = [[variant, f"``{code}``"] for variant, code in variants(ImageFeatures)]
    return text + title("Pipelines", "-") + PIPELINES + list_table(["Method", "Made by"], made, VARIANTS)
