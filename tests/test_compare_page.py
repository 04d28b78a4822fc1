"""The page of a comparison, in a real browser: `sama/report/page/compare.js`. Skipped where there is no browser."""

import browser
import numpy as np
import pytest
from report_rows import HOSTILE
from small_models import save_sharpness
from test_compare import write

from sama.decode.pyav import PyavVideo
from sama.model import load_model
from sama.report.comparison import Comparison, Version, compare
from sama.report.comparison_page import write_comparison
from sama.report.ladders import deltas
from sama.report.matching import Match
from sama.report.scale import Scale

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


@pytest.fixture(scope="module")
def chromium():
    with browser.browsing() as page:
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodes")
    write(folder / "a.mp4")
    write(folder / "b.mp4", crf=44, size=(64, 36))
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """The page of a file and a small encode of it."""
    model = load_model(save_sharpness(folder / "sharpness.safetensors"), device="cpu")
    comparison = compare([folder / "a.mp4", folder / "b.mp4"], model)
    write_comparison(comparison, folder / "two.html")
    return folder / "two.html", comparison


def made_up(folder, names, **changes):
    """A comparison of the same video under several names, with scores that were not measured."""
    with PyavVideo(str(folder / "a.mp4")) as video:
        info = video.info
    times, versions = np.linspace(0.5, 3.5, 6), []
    for k, name in enumerate(names):
        scores = 40 + 6 * (k % 4) + 3 * (k // 4) + np.sin(times * (k + 1))
        facts = {"bitrate": 1e5 * 2.0 ** (k % 4), "file_bytes": 1000, "scores": scores, "seconds": times}
        versions.append(Version("ABCDEFGH"[k], name, info, Match(0.0, 1.0), **facts))
    groups = (
        {"slow": list("ABCD"), "fast": list("EFGH")} if len(names) == 8 else {"h264": list("ABCDEFGH"[: len(names)])}
    )
    points = {
        name: ([v.bitrate for v in versions if v.label in labels], [v.mean for v in versions if v.label in labels])
        for name, labels in groups.items()
    }
    found = deltas(points) if len(points) > 1 else []
    model = type("Model", (), {"name": "made up", "metadata": {}})
    return Comparison(versions, times, Scale("made up", 0, 100), 1.0, model, "none", groups, found)


def test_two_files(chromium, two):
    path, comparison = two
    page = chromium.open(path)
    assert page.one("h1").text == comparison.verdict
    assert [text[0] for text in page.texts("#files tbody td:first-child")] == ["A", "B"]
    assert "worse" in page.texts("#files tbody td")[11]
    assert len(page.all("#lines polyline")) == 2
    assert len(page.all("#difference rect")) == len(comparison.times)
    assert len(page.all("#shots figure")) == 4
    assert not page.one("#rates").is_displayed()
    sizes = page.js("return [...document.querySelectorAll('#shots img')].slice(0, 2).map((n) => n.naturalWidth)")
    assert sizes == [64, 128]  # below, the right one; above it, the left one
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("data:")] == [path.resolve().as_uri()]


def test_slider_by_mouse_and_by_keys(chromium, two):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = chromium.open(two[0])
    slider = page.one("#shots input")
    page.js("arguments[0].scrollIntoView({ block: 'center' })", slider)
    edge = "const b = document.querySelector('#shots .pair').getBoundingClientRect(), e = document.querySelector("
    edge += "'#shots .edge').getBoundingClientRect(); return (e.left + e.width / 2 - b.left) / b.width"
    assert page.js(edge) == pytest.approx(0.5, abs=0.01)
    page.js("arguments[0].focus()", slider)
    page.keys(*[Keys.ARROW_RIGHT] * 20)
    assert page.js(edge) == pytest.approx(0.6, abs=0.01)
    clip = page.js("return getComputedStyle(document.querySelector('#shots .over')).clipPath")
    assert clip.startswith("inset(0")
    ActionChains(page.driver, duration=0).move_to_element_with_offset(slider, -100, 0).click().perform()
    width = page.js("return document.querySelector('#shots .pair').clientWidth")
    assert page.js(edge) == pytest.approx(0.5 - 100 / width, abs=0.05)
    assert "How much of A is shown" in slider.get_attribute("aria-label")


def test_full_size_is_pixel_for_pixel(chromium, two):
    from selenium.webdriver.common.keys import Keys

    page = chromium.open(two[0])
    page.js("document.querySelector('#shots button').click()")
    assert page.one("#full").is_displayed()
    box = "return [...document.querySelectorAll('#fullview img')].map((n) => [n.clientWidth, n.clientHeight])"
    assert page.js(box) == [[128, 72], [128, 72]]
    page.keys(Keys.ESCAPE)
    assert not page.one("#full").is_displayed()


def test_many_files_with_rates(chromium, folder, tmp_path):
    out = tmp_path / "many.html"
    comparison = made_up(folder, [str(folder / "a.mp4")] * 8)
    write_comparison(comparison, out)
    page = chromium.open(out)
    assert page.one("h1").text.startswith("H is the best, ahead of D by")
    assert len(page.all("#lines polyline")) == 8
    assert len(page.all("#curve .dot")) == 8
    assert len(page.all("#curve .hull")) == 1
    assert page.texts("#deltas tbody td")[0] == "fast against slow"
    assert page.texts("#deltas tbody td")[2] == f"+{comparison.deltas[0].quality:.2f} points"
    page.js(
        "const s = document.querySelectorAll('#pickers select')[1]; s.value = 'G'; s.dispatchEvent(new Event('input'))"
    )
    assert page.texts("#shots .mark.right")[0] == "G a.mp4"
    assert "G (a.mp4) scores higher" in page.one("#difference").text


def test_a_telephone_and_dark(chromium, two):
    page = chromium.open(two[0], size=(390, 800), dark=True)
    assert page.js("return document.documentElement.scrollWidth") <= 390
    assert page.js("return document.documentElement.dataset.theme") == "dark"
    widths = page.js(
        "return [...document.querySelectorAll('#shots .pair')].map((n) => n.getBoundingClientRect().right)"
    )
    assert max(widths) <= 390


def test_hostile_names_stay_text(chromium, folder, tmp_path):
    comparison = made_up(folder, list(HOSTILE))
    comparison.groups = {HOSTILE[0]: ["A", "B"], HOSTILE[2]: ["C", "D"]}
    out = tmp_path / "hostile.html"
    write_comparison(comparison, out)  # files of these names are not there: no pictures
    page = chromium.open(out)
    texts = " ".join([*page.texts("#files td"), *page.texts("#ladders span")])
    assert HOSTILE[0].partition("/")[2] in texts
    assert "right-\\u202eto-left\\u202c" in texts
    assert page.js("return window.hit") is None
    assert page.all("img[src=x], #files td b b") == []
    assert page.complaints() == []
