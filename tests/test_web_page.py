"""The page in a real browser against a real server: by hand, by keyboard, on a phone, and when things go wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from urllib.parse import quote

import pytest
from browser import chromium, violations
from fakes import COLOURS, ColourRuntime, picture
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server_process import running

from data.pairs import ImageFile, ImageTextPair
from serving.client import SearchClient
from serving.index_job import build_index
from serving.method_policies import Scope
from serving.token_file import create
from tools.chromium import prefer, resize, until

COUNT = 320
SHAPES = ((48, 32), (32, 48), (32, 32), (96, 32))
HOSTILE_ID = "<img src=x onerror=hacked()>/../\"'&#1"
HOSTILE = "<script>window.hacked = 1</script>\u202egnp.exe\u202c <b>bold</b> " + "long " * 2_000


class Drawings:
    """Pictures of eight colours and four shapes in files, and one that means harm."""

    name = "folder:drawings"

    def __init__(self, directory):
        self.directory = directory

    def __len__(self):
        return COUNT + 1

    def __iter__(self):
        for number in range(COUNT):
            colour = list(COLOURS)[number % len(COLOURS)]
            attributes = {"colour": colour, "number": number, "even": number % 2 == 0, "tags": [colour, "drawn"]}
            yield self._pair(f"{colour}/{number:03}", colour, number, f"a {colour} picture {number}", attributes)
        yield self._pair(HOSTILE_ID, "purple", COUNT, HOSTILE, {"<i>name</i>": "<u>value</u>"})

    def _pair(self, image_id, colour, number, caption, attributes):
        path = self.directory / f"{number:03}.png"
        if not path.exists():
            path.write_bytes(picture(colour, seed=number, size=SHAPES[number % len(SHAPES)]))
        return ImageTextPair(image_id, ImageFile(path), (caption,), None, attributes)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = tmp_path_factory.mktemp("drawn") / "index"
    build_index(ColourRuntime(), Drawings(tmp_path_factory.mktemp("drawings")), index)
    return index


@pytest.fixture(scope="module")
def served(index):
    """The address of the page."""
    with running(index, "page", "calibrated") as (process, address):
        page = process.stdout.readline().strip().removeprefix("page on ")
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield page


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as window:
        yield window


class Page:
    """What a person sees and does."""

    def __init__(self, window, address):
        self.window, self.address = window, address

    def open(self, path="/"):
        self.window.get(self.address + path)
        until(self.window, lambda: self.one("#about").text, "the footer")
        return self

    def all(self, selector):
        return self.window.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.window.find_element(By.CSS_SELECTOR, selector)

    def js(self, script, *arguments):
        return self.window.execute_script(script, *arguments)

    def tiles(self):
        """The ids of the results that have elements, in their order."""
        return self.js("return [...document.querySelectorAll('.tile')].map((tile) => tile.dataset.id)")

    def colours(self):
        return [name.partition("/")[0] for name in self.tiles()]

    def until(self, condition, told):
        return until(self.window, condition, told)

    def until_first(self, colour):
        self.until(lambda: self.colours()[:3] == [colour] * 3, f"{colour} pictures first")

    def type(self, text):
        self.one("#text").send_keys(text)

    def keys(self, *keys):
        ActionChains(self.window).send_keys(*keys).perform()

    def chips(self):
        return [re.sub(r"\s+", " ", chip.text) for chip in self.all(".chip")]

    def act(self, place, which):
        self.js(f"document.querySelectorAll('.tile')[{place}].querySelectorAll('.acts button')[{which}].click()")


@pytest.fixture
def page(window, served):
    resize(window, 1280, 860)
    prefer(window, "light")
    return Page(window, served).open()


def test_results_come_as_one_types_the_right_one_first_and_nothing_jumps(page):
    assert page.one("#welcome").is_displayed()
    page.type("red")
    page.until_first("red")
    assert not page.one("#welcome").is_displayed()
    assert page.one("#count").get_attribute("role") == "status"
    told = page.one("#count").text.replace("\xa0", " ")
    assert re.fullmatch(r"60 and more pictures · \d+ % that the one you mean is among the first ten", told)
    page.until(lambda: page.all(".tile.loaded"), "thumbnails")
    first = page.one(".tile img")
    assert first.get_attribute("alt").startswith("a red picture")
    assert int(first.get_attribute("naturalWidth")) > 0
    moved = """const done = arguments[0]; let sum = 0;
      new PerformanceObserver((list) => {
        for (const shift of list.getEntries()) if (!shift.hadRecentInput) sum += shift.value;
      }).observe({type: "layout-shift", buffered: true});
      requestAnimationFrame(() => setTimeout(() => done(sum), 0));"""
    assert page.window.execute_async_script(moved) < 0.1
    severe = [entry for entry in page.window.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_rows_are_justified_and_pictures_keep_their_shapes(page):
    page.open("/?q=blue")
    page.until_first("blue")
    boxes = page.js(
        "return [...document.querySelectorAll('.tile')].map((tile) => {const box = tile.getBoundingClientRect();"
        "return [tile.dataset.id, box.left, box.right, Math.round(box.top), box.width / box.height]})"
    )
    width = page.js("return document.getElementById('grid').clientWidth")
    rows = {}
    for name, left, right, top, shape in boxes:
        rows.setdefault(top, []).append((left, right))
        wide, high = SHAPES[int(name.rpartition("/")[2]) % len(SHAPES)]
        assert shape == pytest.approx(wide / high, rel=0.02)
    first = min(rows)
    full = [row for top, row in rows.items() if top != first]  # the line of confidence may end a row early
    assert any(row[-1][1] - row[0][0] == pytest.approx(width, abs=2) for row in full)
    assert all(
        b[0] - a[1] == pytest.approx(8, abs=1) for row in rows.values() for a, b in zip(row, row[1:], strict=False)
    )


def test_a_line_shows_where_confident_matches_end(page):
    page.open("/?q=green")
    page.until_first("green")
    page.until(lambda: page.all(".cut"), "the line")
    assert page.one(".cut").text == "Less certain from here on"
    above = page.js(
        "const line = document.querySelector('.cut').getBoundingClientRect().top;"
        "return [...document.querySelectorAll('.tile')].filter((tile) => tile.getBoundingClientRect().top < line)"
        ".map((tile) => tile.dataset.id)"
    )
    assert {name.partition("/")[0] for name in above} == {"green"}


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_is_searched_by(page, event):
    page.js(
        """const [event, text] = arguments;
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "mine.png", {type: "image/png"}));
        if (event === "drop") dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
        else dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, cancelable: true}));""",
        event,
        base64.b64encode(picture("orange", seed=900)).decode(),
    )
    page.until_first("orange")
    assert page.chips() == ["More like × 1"]
    page.one(".chip .icon").click()
    page.until(lambda: page.one("#welcome").is_displayed(), "the beginning")


def test_a_picture_that_is_picked_joins_the_words_and_comes_back(page, tmp_path):
    (tmp_path / "mine.png").write_bytes(picture("yellow", seed=901))
    page.type("red")
    page.until_first("red")
    page.one("#file").send_keys(str(tmp_path / "mine.png"))
    page.until(lambda: len(page.chips()) == 2, "two chips")
    page.until(lambda: "yellow" in page.colours(), "pictures like it")
    page.window.back()
    page.until(lambda: page.chips() == [], "the words alone")
    page.window.forward()
    page.until(lambda: len(page.chips()) == 2, "the picture again")


def test_less_like_this_takes_results_down_by_its_weight_until_it_is_removed(page):
    page.open("/?q=red")
    page.until_first("red")
    page.act(0, 1)
    page.until(lambda: len(page.chips()) == 2, "the words and what they are weighed against")
    assert page.chips()[1].startswith("Less like × 0.5")
    page.js("arguments[0].value = 2; arguments[0].dispatchEvent(new Event('change'))", page.one(".chip.less input"))
    page.until(lambda: page.tiles() and "red" not in page.colours(), "others")
    assert "like=-2~red" in page.window.current_url.replace("%7E", "~")
    page.one(".chip.less .turn").click()
    page.until_first("red")
    assert page.chips()[1].startswith("More like × 1")
    page.one(".chip.more .icon").click()
    page.until(lambda: page.chips() == [] and page.colours()[:3] == ["red"] * 3, "the words alone")


def test_filters_of_the_index_choose_and_are_kept_in_the_address(page):
    page.open("/?q=red")
    page.until_first("red")
    page.one("#filter-toggle").click()
    colour = page.until(
        lambda: [g for g in page.all("#filters fieldset") if g.text.startswith("colour")], "the attributes"
    )[0]
    pill = next(pill for pill in colour.find_elements(By.CSS_SELECTOR, ".pill") if pill.text != "red")
    chosen = pill.text
    pill.click()
    page.until_first(chosen)
    assert set(page.colours()) == {chosen}
    assert page.one("#filter-count").text == "1"
    address = page.window.current_url
    page.open(address.removeprefix(page.address))
    page.until_first(chosen)
    assert page.chips() == [f"colour: {chosen}"]
    page.window.back()
    page.until(lambda: page.window.current_url != address, "the page before")
    page.open("/?q=red&filter=number+%3C+")
    page.until(lambda: "cannot be searched" in page.one("#notice").text, "the refusal")
    page.open("/?q=red&f=n.number%3D0..9&f=b.even%3Dtrue&f=t.tags%3Ddrawn")
    page.until(
        lambda: sorted(page.tiles()) == sorted(f"{list(COLOURS)[n % 8]}/{n:03}" for n in (0, 2, 4, 6, 8)), "five"
    )


def test_the_third_page_comes_by_scrolling_with_few_elements(page):
    page.open("/?q=red")
    page.until_first("red")
    seen = {}

    def scrolled_to(count):
        page.js("scrollTo(0, document.documentElement.scrollHeight)")
        places = page.js(
            "return [...document.querySelectorAll('.tile')]"
            ".map((tile) => [+tile.getAttribute('aria-posinset'), tile.dataset.id])"
        )
        seen.update(places)
        return max(seen) > count

    page.until(lambda: scrolled_to(130), "the third page")
    assert page.js("return document.querySelectorAll('.tile').length") < 120
    assert len(set(seen.values())) == len(seen)
    assert page.js("return [...document.querySelectorAll('.tile')].every((tile, place, all) => !place || "
                   "+all[place - 1].getAttribute('aria-posinset') < +tile.getAttribute('aria-posinset'))")  # fmt: skip
    page.js("scrollTo(0, 0)")
    page.until(lambda: page.colours()[:3] == ["red"] * 3, "the first again")


def test_an_image_opens_with_all_that_is_known_and_the_back_button_closes_it(page):
    page.open("/?q=purple")
    page.until_first("purple")
    name = page.tiles()[1]
    page.all(".tile a")[1].click()
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog")
    number = int(name.rpartition("/")[2])
    assert page.one("#detail-title").text == f"a purple picture {number}"
    facts = dict(zip([d.text for d in page.all("#detail dt")], [d.text for d in page.all("#detail dd")], strict=True))
    even = "yes" if number % 2 == 0 else "no"
    assert {"id": name, "colour": "purple", "tags": "purple, drawn", "even": even}.items() <= facts.items()
    page.until(
        lambda: page.js("return document.querySelector('#detail img').naturalWidth") in (32, 48, 96), "the picture"
    )
    address = page.window.current_url
    assert "image=purple" in address
    page.window.back()
    page.until(lambda: not page.one("#detail").is_displayed(), "the results")
    assert page.tiles()[1] == name
    page.open(address.removeprefix(page.address))
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog from its address")
    page.keys(Keys.ESCAPE)
    page.until(lambda: not page.one("#detail").is_displayed(), "the results")
    page.open("/?image=red/000")
    page.until(lambda: page.one("#detail-title").text == "a red picture 0", "an image without a search")


def test_everything_can_be_done_by_keyboard(page):
    focused = "return document.activeElement.closest('.tile')?.dataset.id ?? document.activeElement.id"
    page.keys("/")
    assert page.js(focused) == "text"
    page.keys("green")
    page.until_first("green")
    page.keys(Keys.ARROW_DOWN)
    page.until(lambda: page.js(focused) == page.tiles()[0], "the first result")
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    third = page.js(focused)
    assert third == page.tiles()[2]
    page.keys(Keys.ENTER)
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog")
    page.keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.tiles()[3] in page.one("#detail dl").text, "the next image")
    page.keys(Keys.ESCAPE)
    page.until(lambda: page.js(focused) == page.tiles()[3], "the result that was open")
    page.keys("l")
    page.until(lambda: any(chip.startswith("Less like") for chip in page.chips()), "a chip")
    page.keys(Keys.TAB)
    assert page.js("return document.activeElement !== document.body")


def test_a_phone_shows_it_all_without_scrolling_aside(page):
    resize(page.window, 360, 740, mobile=True)
    page.open("/?q=red&like=0.5~blue/002&like=-0.5~green/001")
    page.until(lambda: page.tiles() and len(page.chips()) == 3, "results and chips")
    assert page.js("return document.documentElement.scrollWidth") <= 360
    for control in ("#text", "#pick", "#filter-toggle", "#theme"):
        box = page.one(control).rect
        assert 0 <= box["x"] < box["x"] + box["width"] <= 360
    page.js("document.querySelector('.tile a').click()")
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog")
    box = page.one("#detail").rect
    assert (box["x"], box["width"]) == (0, 360)


def test_hostile_captions_names_and_values_are_text(page):
    page.open("/?q=purple&filter=" + quote(f"id = {json.dumps(HOSTILE_ID)}"))
    page.until(lambda: page.tiles() == [HOSTILE_ID], "the hostile picture")
    page.until(lambda: page.all(".tile.loaded"), "its thumbnail")
    page.act(0, 0)
    page.until(lambda: page.chips() and page.tiles() == [HOSTILE_ID], "its chip")
    page.js("document.querySelector('.tile a').click()")
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog")
    assert page.one("#detail-title").text.startswith("<script>window.hacked = 1</script>")
    assert "\u202e" not in page.one("#detail-title").text
    assert "<u>value</u>" in page.one("#detail dl").text
    assert page.js(
        "return window.hacked === undefined && !document.querySelector('#detail script, #detail b, .tile script')"
    )
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


def test_searches_go_on_by_themselves_when_a_stopped_server_is_back(window, index):
    with running(index, "page") as (process, address):
        served = process.stdout.readline().strip().removeprefix("page on ")
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        page = Page(window, served).open("/?q=red")
        page.until_first("red")
    page.type(" yellow")
    page.until(lambda: "does not answer" in page.one("#notice").text, "the notice")
    assert page.one("#notice").get_attribute("role") == "alert"
    assert page.colours()[:3] == ["red"] * 3  # what was found stays
    with running(index, f"page={served.removeprefix('http://')}") as (process, _):
        page.until(lambda: "yellow" in page.colours(), "results")
        assert not page.one("#notice").is_displayed()


def test_where_tokens_are_asked_for_the_page_asks_too_and_shows_pictures_by_it(window, index, tmp_path):
    tokens = tmp_path / "tokens.json"
    token = create(tokens, "reader", frozenset({Scope.SEARCH}), time.time())
    with running(index, "page", f"--access-tokens={tokens}") as (process, _):
        page = Page(window, process.stdout.readline().strip().removeprefix("page on "))
        window.get(f"{page.address}/?q=blue")
        page.until(lambda: page.all("#notice input"), "the question")
        page.one("#notice input").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.all("#notice input") and not page.one("#notice input").get_attribute("value"), "again")
        page.one("#notice input").send_keys(token, Keys.ENTER)
        page.until_first("blue")
        page.until(lambda: page.all(".tile.loaded"), "thumbnails")
        assert page.one(".tile img").get_attribute("src").startswith("blob:")
        assert token not in page.js("return document.documentElement.outerHTML + location.href")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_view_has_a_serious_accessibility_violation(page, scheme):
    prefer(page.window, scheme)
    found = {}

    def look(name):
        found[name] = violations(page.window)

    page.open("/")
    look("welcome")
    page.open("/?q=green&like=0.5~blue/002&like=-0.5~red/000")
    page.until(lambda: page.tiles() and len(page.chips()) == 3, "results")
    page.one("#filter-toggle").click()
    look("results, chips and filters")
    page.one("#filter-toggle").click()
    page.open("/?q=green")
    page.until(lambda: page.all(".cut"), "the line")
    page.js("document.querySelectorAll('.tile a')[1].focus()")
    look("results with a line")
    page.js("document.querySelectorAll('.tile a')[1].click()")
    page.until(lambda: page.one("#detail").is_displayed(), "the dialog")
    look("detail")
    page.open("/?q=red&filter=%3D")
    page.until(lambda: page.one("#notice").is_displayed(), "the refusal")
    look("error")
    assert found == dict.fromkeys(found, [])
