"""The report: order, numbers, pictures, escaping, and that nothing is loaded from elsewhere."""

import base64
import re
from html import unescape
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from skanomaly._report import most_alike, outline, thumbnails, write_report
from skanomaly.io import read_folder
from skanomaly.testing import make_images

SCORES, P = np.array([1.0, 5.0, 3.0, 3.0]), np.array([0.9, 0.1, 0.2, 0.2])
LABELS = ["normal", "anomalous", "normal", "normal"]


@pytest.fixture
def files(tmp_path):
    for k, (name, image) in enumerate(zip(("a", "b & <i>", "c", "d"), make_images((4, 40, 30)))):
        folder = tmp_path / f"patient {k % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{name}.png")
    return read_folder(tmp_path, groups=r"patient (\d)")


def page_of(files, path, **options):
    write_report(path, files, SCORES, P, LABELS, **options)
    return path.read_text()


def maps_of(n=4):
    maps = np.zeros((n, 20, 20))
    maps[:, 5:10, 5:9] = 3
    maps[:, 15, 15:17] = 2
    return maps


def images_in(html):
    return [
        np.asarray(Image.open(BytesIO(base64.b64decode(data)))) for data in re.findall(r'base64,(.*?)"', html)
    ]


def test_the_most_suspicious_come_first(files, tmp_path):
    page = page_of(files, tmp_path / "report.html")
    names = [unescape(name) for name in re.findall(r'<td class="file">(.*?)<br>', page)]
    assert names == [files.paths[k].relative_to(tmp_path).as_posix() for k in (1, 2, 3, 0)]
    assert re.findall(r'data-score="(.*?)"', page) == ["5.0", "3.0", "3.0", "1.0"]
    assert re.findall(r'data-label="(.*?)"', page) == [LABELS[k] for k in (1, 2, 3, 0)]
    assert "1 of 4 images are flagged" in page
    assert re.findall(r"patient (\d)</span>", page) == [files.groups[k] for k in (1, 2, 3, 0)]
    assert "scores.csv has all" not in page
    short = page_of(files, tmp_path / "report.html", n_shown=2)
    assert short.count("<tr data-name") == 2
    assert "The first 2 have pictures; scores.csv has all." in short


def test_names_are_text(files, tmp_path):
    page = page_of(files, tmp_path / "report.html", card=[("<script>", "a < b & c")])
    assert "b &amp; &lt;i&gt;.png" in page
    assert "<i>" not in page
    assert "<dt>&lt;script&gt;</dt><dd>a &lt; b &amp; c</dd>" in page


def test_nothing_is_loaded_from_elsewhere(files, tmp_path):
    page = page_of(files, tmp_path / "report.html", maps=maps_of(), masks=maps_of() > 1)
    assert not re.search(r"https?:|url\(|@import|<link", page)
    sources = re.findall(r'src="(.*?)"', page)
    assert len(sources) == 3 * 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_pictures(files, tmp_path):
    page = page_of(files, tmp_path / "report.html", maps=maps_of(), masks=maps_of() > 1, limits=(0, 3))
    image, heat, line = (
        np.asarray(Image.open(BytesIO(base64.b64decode(data)))).astype(int)
        for data in re.findall(r"base64,(.*?)\"", page)[:3]
    )
    np.testing.assert_array_equal(image, np.repeat(files.original(1)[..., None], 3, axis=2))
    assert image.shape == (40, 30, 3)
    changed = (heat != image).any(2)
    assert changed[12:18, 9:12].all()
    assert not changed[25:28].any()
    marked = (line != image).any(2)
    assert marked.any()
    assert not marked[14:16, 10:12].any(), "the inside of a region stays as it is"


@pytest.mark.parametrize("side", [64, 512, 3000])
def test_outlines_are_seen_in_images_of_any_size(tmp_path, side):
    Image.fromarray(make_images((1, 64, 64))[0] // 2).resize((side, side)).save(tmp_path / "one.png")
    maps = np.zeros((1, 64, 64))
    maps[:, 20:40, 20:40] = 1
    values = [1.0], [0.5], ["normal"]
    write_report(tmp_path / "r.html", read_folder(tmp_path), *values, maps=maps, masks=maps > 0)
    *_, line = images_in((tmp_path / "r.html").read_text())
    line = line.astype(int)
    assert (line[..., 0] - line[..., 1]).max() > 80


def test_regions(files, tmp_path):
    page = page_of(files, tmp_path / "report.html", maps=maps_of(), masks=maps_of() > 1)
    assert "20 px at row 7, column 6; 94 % of the map" in page  # 60 of 64
    assert "2 px at row 15, column 16; 6 % of the map" in page
    many = np.zeros((4, 20, 20))
    many[:, ::3, 5] = 1
    assert "and 2 smaller" in page_of(files, tmp_path / "report.html", maps=many, masks=many > 0.5)
    assert ">none</td>" in page_of(files, tmp_path / "report.html", maps=many * 0, masks=many < 0)
    assert "<figcaption>map" not in page_of(files, tmp_path / "report.html")


def test_a_reconstruction_is_beside_its_image(files, tmp_path):
    asked = []

    def inverted(some):
        asked.append([path.name for path in some.paths])
        return 255 - some[:]

    page = page_of(files, tmp_path / "report.html", reconstruct=inverted, n_shown=2)
    assert asked == [[files.paths[k].name for k in (1, 2)]], "none but those on the page, in its order"
    assert page.count("<figcaption>reconstruction") == 2
    for image, reconstruction in np.array(images_in(page)).reshape(2, 2, 40, 30, 3):
        assert np.ptp(image) > 100
        np.testing.assert_array_equal(reconstruction, 255 - image)


def test_normal_images_most_like_it(files, tmp_path):
    """Training images are those of the page and others: the most alike of each is itself."""
    known = thumbnails(files)
    assert [len(row) for row in most_alike(known, known)] == [3] * 4
    np.testing.assert_array_equal(most_alike(known, known)[:, 0], range(4))
    page = page_of(files, tmp_path / "report.html", known=known)
    alike = re.findall(r'class="alike">(.*?)</div>', page, re.DOTALL)
    assert len(alike) == 4
    for row, k in zip(alike, (1, 2, 3, 0)):
        found = images_in(row)
        assert len(found) == 3
        np.testing.assert_array_equal(found[0][..., 0], files.original(k))
    assert 'class="alike"' not in page_of(files, tmp_path / "report.html")
    assert most_alike(known[:2], known).shape == (4, 2)
    assert 'class="alike"' not in page_of(files, tmp_path / "report.html", known=known[:1])


def test_thumbnails_are_small(tmp_path):
    image = make_images((1, 300, 200))[0]
    Image.fromarray(image).save(tmp_path / "large.png")
    (found,) = images_in(f'base64,{thumbnails(read_folder(tmp_path))[0]}"')
    assert found.shape == (96, 64, 3)


def test_an_outline_is_the_rim():
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:6] = True
    rim = outline(mask)
    assert rim.sum() == 4 * 5 - 2 * 3
    assert not rim[2:4, 2:5].any()
