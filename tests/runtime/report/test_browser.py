"""A report opened in headless Chromium: no errors, nothing asked for, hover, keys, switches, narrow and dark."""

import json

import numpy as np
import pytest
from browser import CHROMIUM, open_browser
from reports import small_report

from runtime.report import write_report
from runtime.sources.at_hand import at_hand

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install Debian's chromium (.ci/run does where it may)"
)
HOSTILE = "</script><script>window.hacked=1</script>.png"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    made = small_report(folder / "images", 4, 30)
    (folder / "images" / made.map.keys[lone_points(made.map.layouts[0].positions)[0]][1]).unlink()  # a placeholder
    write_report(folder / "r.html", made, at_hand)
    return folder / "r.html"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser, report):
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1100, 900)
    browser.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    browser.mouse("mouseMoved", 1, 1)
    browser.open(report.as_uri())
    browser.settle()
    yield browser
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [report.as_uri()]


def point(page, number: int) -> tuple[float, float]:
    """The middle of a point of the map, which is scrolled to."""
    page.evaluate("document.querySelector('#map').scrollIntoView({block: 'center'})")
    page.settle()
    box = page.evaluate(f"document.querySelectorAll('#map > use')[{number}].getBoundingClientRect().toJSON()")
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def tip(page) -> dict | None:
    """What the tooltip shows, if it shows anything."""
    return page.evaluate(
        "(() => { const tip = document.querySelector('#tip'); if (tip.hidden) return null;"
        "const image = tip.querySelector('img');"
        "const box = tip.getBoundingClientRect().toJSON();"
        "return {text: tip.innerText, width: image && image.naturalWidth, box} })()"
    )


def lone_points(positions: np.ndarray) -> list[int]:
    """Points of (m, 2), those farthest from any other first: no neighbour takes their tooltip."""
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.fill_diagonal(apart, np.inf)
    return np.argsort(-apart.min(axis=1)).tolist()


def map_data(page) -> dict:
    return json.loads(page.evaluate("document.querySelector('#map-data').textContent"))


def drawn_lone_points(page) -> list[int]:
    return lone_points(np.array(map_data(page)["layouts"][0]["xy"]).reshape(-1, 2))


def test_every_image_can_be_drawn_and_every_point_is_on_the_map(page):
    page.evaluate("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager' })")
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    assert page.evaluate("document.images.length") > 90
    assert page.evaluate("document.querySelectorAll('#map > use').length") == 120
    assert page.evaluate("document.querySelectorAll('#map > g > text').length") == 4
    assert page.evaluate("document.querySelectorAll('#legend button').length") == 4
    assert tip(page) is None


def test_hovering_shows_the_thumbnail_and_leaving_hides_it(page):
    for number in drawn_lone_points(page)[1:4]:  # the first is missing
        page.mouse("mouseMoved", *point(page, number))
        shown = tip(page)
        assert shown["text"].splitlines()[0] == map_data(page)["name"][number]
        assert "cluster" in shown["text"]
        assert "class" in shown["text"]
        assert shown["width"] > 0
        assert shown["box"]["x"] >= 0
        assert shown["box"]["right"] <= 1100
    page.mouse("mouseMoved", 1, 1)
    assert tip(page) is None


def test_a_missing_image_has_a_placeholder(page):
    gone = drawn_lone_points(page)[0]
    page.mouse("mouseMoved", *point(page, gone))
    shown = tip(page)
    assert map_data(page)["name"][gone] in shown["text"].splitlines()
    assert shown["width"] is None
    assert page.evaluate("getComputedStyle(document.querySelector('#tip .missing')).width") == "96px"


def test_a_tap_shows_the_thumbnail(page):
    x, y = point(page, drawn_lone_points(page)[0])
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.settle()
    assert tip(page) is not None


def test_arrow_keys_go_from_image_to_image_and_escape_leaves(page):
    page.evaluate("document.querySelector('#map').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.key(key)
        seen.append(tip(page)["text"])
    assert len(set(seen)) == 3
    page.key("Escape")
    assert tip(page) is None


def test_the_switch_colors_by_class(page):
    colors = "[...document.querySelectorAll('#map > use')].map((point) => getComputedStyle(point).fill)"
    before = page.evaluate(colors)
    page.click("input[name=color][value='1']")
    after = page.evaluate(colors)
    assert len(set(before)) == len(set(after)) == 4
    assert [number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]] == [0]
    assert page.evaluate("document.querySelector('#legend').innerText").split()[0] == "class0"
    page.click("input[name=color][value='0']")
    assert page.evaluate(colors) == before


def test_a_button_shows_one_group_alone(page):
    page.click("#legend button:nth-child(2)")
    assert page.evaluate("document.querySelectorAll('#map.picked > use.on').length") == 30
    assert page.evaluate("document.querySelector('#legend button:nth-child(2)').ariaPressed") == "true"
    faint, clear = (
        float(page.evaluate(f"getComputedStyle(document.querySelector('#map > use{rule}')).opacity"))
        for rule in (":not(.on)", ".on")
    )
    assert faint < 0.2 < clear
    page.click("#legend button:nth-child(2)")
    assert page.evaluate("document.querySelectorAll('#map.picked').length") == 0


def test_pointing_at_a_contact_sheet_tells_the_image(page):
    page.evaluate("document.querySelector('.tiles img').scrollIntoView({block: 'center'})")
    page.settle()
    box = page.box(".tiles img")
    page.mouse("mouseMoved", box["x"] + 9, box["y"] + 9)
    shown = tip(page)
    assert shown["text"].splitlines()[0] == page.evaluate("document.querySelector('.tiles img').alt.split('; ')[0]")
    assert shown["width"] > 0


@pytest.mark.parametrize("width", [320, 360, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(page, width):
    page.resize(width, 740, scale=2, mobile=True)
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.innerWidth") == width
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll, svg, .hidden')"
        f" && one.getBoundingClientRect().right > {width} + 0.5).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_the_words_of_charts_are_large_enough_and_on_the_page(page, width):
    page.resize(width, 740, mobile=width < 640)
    page.settle()
    words = page.evaluate(
        "[...document.querySelectorAll('.chart .tick')].map((one) => {"
        "const box = one.getBoundingClientRect(), card = one.closest('.part').getBoundingClientRect();"
        "return [one.textContent, box.height, box.left >= card.left && box.right <= card.right] })"
    )
    assert len(words) > 5
    assert [word for word in words if word[1] < 9.5 or not word[2]] == []  # pixels, line height and all


def test_dark_mode_is_dark_and_its_text_light(page):
    def brightness(what: str) -> float:
        color = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]) / 3

    light = brightness("backgroundColor"), brightness("color")
    page.media(prefers_color_scheme="dark")
    page.settle()
    dark = brightness("backgroundColor"), brightness("color")
    assert light[0] > 200 > 60 > light[1]
    assert dark[1] > 200 > 60 > dark[0]


def test_every_text_stands_out_from_its_ground(page):
    """WCAG's contrast of 4.5 for the colours of text, in both schemes."""
    contrast = """(() => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => {
        const hex = style.getPropertyValue(name).trim().replace(/^#(.)(.)(.)$/, '#$1$1$2$2$3$3');
        const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
          .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const text = ['--ink', '--faint', '--accent', '--flag'].map((name) => [name, 4.5]);
      const marks = [...Array(10).keys()].map((n) => [`--c${n}`, 3]);
      return [...text, ...marks, ['--noise', 2.5]].flatMap(([name, least]) => ['--card', '--page']
        .map((ground) => [name, ground, ratio(light(name), light(ground)), least]))
        .filter(([, , got, least]) => got < least);
    })()"""
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        assert page.evaluate(contrast) == [], scheme


def test_a_hostile_name_stays_a_name(browser, tmp_path):
    made = small_report(tmp_path / "images", 2, 2)
    root, _ = made.map.keys[0]
    keys = [(root, HOSTILE), *made.map.keys[1:]]
    object.__setattr__(made.map, "keys", keys)
    write_report(tmp_path / "r.html", made, at_hand)
    browser.problems.clear()
    browser.requests.clear()
    browser.open((tmp_path / "r.html").as_uri())
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.scripts.length") == 2
    browser.mouse("mouseMoved", *point(browser, 0))
    assert HOSTILE in tip(browser)["text"].splitlines()
    assert browser.problems == []
    assert browser.requests[:1] == [(tmp_path / "r.html").as_uri()]


def test_the_policy_stops_a_script_that_got_in(browser, tmp_path):
    """So that the test above can fail: the policy holds even where escaping would not."""
    write_report(tmp_path / "r.html", small_report(tmp_path / "images", 2, 2), at_hand)
    text = (tmp_path / "r.html").read_text()
    (tmp_path / "r.html").write_text(
        text.replace("<main", "<script>window.hacked = 1</script><img src=x onerror='window.hacked=2'><main", 1)
    )
    browser.problems.clear()
    browser.open((tmp_path / "r.html").as_uri())
    browser.settle()
    assert browser.evaluate("window.hacked") is None
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()
