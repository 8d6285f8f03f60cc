"""The report in headless Chromium: sorting, filter, widths, dark and light, no error in the console.

Not collected with the other tests, since it needs a browser: make test-browser.
"""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from skanomaly._report import thumbnails, write_report
from skanomaly.io import read_folder
from skanomaly.testing import make_images

NAMES = "image 10.png", "image 9.png", "other.png", "last.png"
SCORES, P = np.array([1.0, 5.0, 3.0, 2.0]), np.array([0.9, 0.1, 0.2, 0.3])
LABELS = ["normal", "anomalous", "anomalous", "normal"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, image in zip(NAMES, make_images((4, 64, 64))):
        Image.fromarray(image).save(folder / name)
    files = read_folder(folder)
    order = [NAMES.index(path.name) for path in files.paths]
    maps = np.zeros((4, 64, 64))
    maps[:, 10:30, 20:40] = 2
    values = {"maps": maps, "masks": maps > 1, "limits": (0, 2), "card": [("detector", "FeatureGaussian()")]}
    values |= {"known": thumbnails(files), "reconstruct": lambda some: 255 - some[:]}
    path = folder / "report.html"
    write_report(path, files, SCORES[order], P[order], [LABELS[k] for k in order], **values)
    return path.as_uri()


@pytest.fixture
def open_page(address, tmp_path):
    browsers = []

    def start(width, scheme="light"):
        options = webdriver.ChromeOptions()
        flags = "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"
        for flag in (*flags, "disable-component-update", "disable-sync", f"user-data-dir={tmp_path}/{width}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        browsers.append(browser)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(address)
        return browser

    yield start
    for browser in browsers:
        log = browser.get_log("browser")
        browser.quit()
        assert log == []


def shown(browser):
    rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    return [row.get_attribute("data-name").strip() for row in rows if row.is_displayed()]


def test_rows_are_sorted(open_page):
    browser = open_page(1300)
    assert shown(browser) == ["image 9.png", "other.png", "last.png", "image 10.png"]
    for key, order in {
        "name": ["image 9.png", "image 10.png", "last.png", "other.png"],
        "score": ["image 10.png", "last.png", "other.png", "image 9.png"],
    }.items():
        button = browser.find_element(By.CSS_SELECTOR, f"[data-key={key}]")
        button.click()
        assert shown(browser) == order
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
        button.click()
        assert shown(browser) == order[::-1]


def test_rows_are_sorted_on_a_phone(open_page):
    """Where the heads of the table are not seen."""
    browser = open_page(390)
    choice = Select(browser.find_element(By.ID, "sort"))
    choice.select_by_value("name")
    assert shown(browser) == ["image 9.png", "image 10.png", "last.png", "other.png"]
    choice.select_by_value("score")
    assert shown(browser) == ["image 9.png", "other.png", "last.png", "image 10.png"]


def test_rows_are_filtered(open_page):
    browser = open_page(1300)
    find, label = browser.find_element(By.ID, "find"), Select(browser.find_element(By.ID, "label"))
    find.send_keys("IMAGE")
    assert shown(browser) == ["image 9.png", "image 10.png"]
    label.select_by_visible_text("anomalous")
    assert shown(browser) == ["image 9.png"]
    assert browser.find_element(By.ID, "count").text == "1 of 4 shown"
    find.clear()
    find.send_keys("other")
    assert shown(browser) == ["other.png"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_it_is_readable(open_page, width, scheme):
    browser = open_page(width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    there = "return [...document.images].filter(image => image.complete && image.naturalWidth > 0).length"
    WebDriverWait(browser, 10).until(lambda _: browser.execute_script(there) == (3 + 1 + 3) * 4)
    # A picture of the page has its pictures: more than the few tones of text and lines.
    picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("L")
    assert picture.width == width
    assert (np.bincount(np.ravel(picture), minlength=256) > 20).sum() > 100
    ink, page = (
        browser.execute_script(f"return getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    darkness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, page)]
    assert (darkness[0] > darkness[1]) == (scheme == "dark")
    assert abs(darkness[0] - darkness[1]) > 450
    # Not by colour alone: the label is a word.
    labels = browser.find_elements(By.CSS_SELECTOR, "td[data-name=label]")
    assert [label.text.split()[-1] for label in labels] == ["anomalous", "anomalous", "normal", "normal"]
