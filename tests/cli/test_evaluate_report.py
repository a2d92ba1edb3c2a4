"""The page of `evaluate --report`: what is in it, and that a browser shows it without a network."""

import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli.evaluate import command
from streamer.simulator import ShopSimulator, SimulatorSettings

app = typer.Typer()
app.command()(command)

SMALL = {
    "ANABRANCH__PROCESSES": "1",
    "ANABRANCH__FEATURES__USERS": "1000",
    "ANABRANCH__FEATURES__ITEMS": "1000",
    "ANABRANCH__FEATURES__PAIRS": "1024",
    "ANABRANCH__FEATURES__VALUES": "1024",
    "ANABRANCH__EMBEDDING__MAX_MIB": "1",
    "ANABRANCH__MODEL__FIELD_GATES": "true",
}
SHOP = SimulatorSettings(
    events=3_000,
    n_users=400,
    n_items=400,
    click_rate=0.3,
    purchase_rate=0.5,
    click_window_ms=10_000,
    purchase_window_ms=20_000,
    click_delay_ms=400,
    purchase_delay_ms=500,
)
HOSTILE = '<img src=x onerror=alert(1)> & $\\frac{a}$ "b" €'
SECTIONS = ["data", "quality", "calibration", "comparison", "experts", "fields", "delays"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BLUE = (0x3B, 0x82, 0xC4)


class Page(HTMLParser):
    """What is in each section: plots, rows of tables, text; and every tag, attribute and id of the page."""

    def __init__(self, text):
        super().__init__()
        self.plots, self.rows, self.text = {}, {}, {}
        self.tags, self.links = set(), set()
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links |= {value for name, value in attributes if name in {"src", "href", "xlink:href", "action", "data"}}
        if tag == "section":
            self._section = dict(attributes)["id"]
        for kind, counted in (("svg", self.plots), ("tr", self.rows)):
            counted[self._section] = counted.get(self._section, 0) + (tag == kind)

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data


def evaluate(*arguments):
    for name in [name for name in os.environ if name.startswith("ANABRANCH__")]:
        raise AssertionError(f"{name} is set: these tests would test other settings")
    return CliRunner(env=SMALL).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A shop whose items have an attribute with a name that is markup, and a formula."""
    file = tmp_path_factory.mktemp("log") / "events & <more>.jsonl"
    events = [msgspec.to_builtins(event) for event in ShopSimulator(SHOP).events()]
    for event in events:
        if "category" in event.get("item", {}):
            event["item"][HOSTILE] = event["item"].pop("category")
    file.write_bytes(b"\n".join(map(msgspec.json.encode, events)))
    return file


@pytest.fixture(scope="module")
def file(log):
    page = log.with_name("report.html")
    windows = ("--window", "click=5s", "--window", "purchase=5s")
    variants = "single_task,shared_bottom+model.expert_layers=[16, 8]"
    result = evaluate(log, "--ranking", 0, *windows, "--compare", variants, "--report", page)
    assert result.exit_code == 0, result.output
    return page


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text(encoding="utf-8"))


def test_every_section_is_there_with_its_plots_and_tables(page):
    assert [name for name in page.plots if name] == SECTIONS
    assert page.plots["quality"] == 2
    assert (page.plots["experts"], page.plots["delays"]) == (1, 1)
    for section in ("calibration", "comparison", "fields"):
        assert page.plots[section] == 3, f"{section}: a plot for each task"
    for section in set(SECTIONS) - {"calibration"}:
        assert page.rows[section] >= 3, section
    for told in ("content_view", "click", "purchase", "oracle, last half"):
        assert told in page.text["quality"]
    assert "shared_bottom+model.expert_layers=[16, 8]" in page.text["comparison"]
    assert "expert 2" in page.text["experts"]
    assert re.search(r"item\.price, number", page.text["fields"])
    gates = page.text["fields"].partition("gate, 1 at first")[2]
    assert all(re.search(rf"{name}\d\.\d{{3}}", gates) for name in ("user_id", "item_id", "history click"))
    sizes = [float(one) for one in re.findall(r"\d\.\d{3}", gates)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1 > sizes[-1], "they have learned"


def test_names_from_the_log_are_text_wherever_they_stand(page):
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "more"}
    assert HOSTILE in page.text["data"]
    assert f"item.{HOSTILE}" in page.text["fields"]
    assert "events & <more>.jsonl" in page.text[""]


def test_nothing_in_the_page_points_outside_it(page):
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links


def test_plots_take_their_ink_from_the_page_so_that_it_is_read_light_or_dark(file):
    text = file.read_text(encoding="utf-8")
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(fill|stroke): ?#(000000|010203)", text)


def test_a_run_without_gates_outcomes_or_variants_says_so(log, tmp_path):
    file = tmp_path / "page.html"
    result = evaluate(log, "--ranking", 0, "--mode", "implicit", "--model", "shared_bottom", "--report", file)
    assert result.exit_code == 0, result.output
    page = Page(file.read_text(encoding="utf-8"))
    assert [name for name in page.plots if name] == [name for name in SECTIONS if name != "comparison"]
    assert "The model shared_bottom has no gates." in page.text["experts"]
    assert "No outcome was joined" in page.text["delays"]


def test_a_log_too_short_for_anything_still_has_its_page(log, tmp_path):
    short, file = tmp_path / "short.jsonl", tmp_path / "page.html"
    short.write_bytes(b"\n".join(log.read_bytes().splitlines()[:4]))
    result = evaluate(short, "--compare", "single_task", "--report", file)
    assert result.exit_code == 0, result.output
    assert "too few time blocks" in Page(file.read_text(encoding="utf-8")).text["comparison"]


def test_what_the_page_needs_is_looked_at_before_the_run(log, tmp_path, monkeypatch):
    result = evaluate(log, "--report", tmp_path / "nowhere" / "page.html")
    assert (result.exit_code, "there is no folder" in result.stderr) == (1, True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    result = evaluate(log, "--report", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "draws with matplotlib, not installed here: pip install 'anabranch[report]'" in result.stderr


def chromium(tmp_path, file, *options):
    """Run the browser over a file, with a profile of its own and every host unknown."""
    if CHROMIUM is None:
        missing = "no chromium, chromium-browser or google-chrome on the path: apt-get install chromium"
        if os.environ.get("ANABRANCH_REQUIRE_BROWSER") == "1":
            pytest.fail(f"ANABRANCH_REQUIRE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    offline = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}")
    done = subprocess.run(
        [CHROMIUM, *fixed, *offline, "--enable-logging=stderr", *options, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
def test_a_browser_shows_the_page_without_a_word_on_its_console(file, tmp_path, page):
    shown, console = chromium(tmp_path, file, "--dump-dom")
    assert console == []
    seen = Page(shown)
    assert seen.plots == page.plots
    assert seen.rows == page.rows


@pytest.mark.browser
def test_the_console_would_tell_of_anything_that_the_page_asked_the_network_for(file, tmp_path):
    worse = tmp_path / "worse.html"
    text = file.read_text(encoding="utf-8")
    worse.write_text(text.replace("</main>", '<script src="https://example.org/x.js"></script></main>'), "utf-8")
    _, console = chromium(tmp_path, worse, "--dump-dom")
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "paper"), [("light", (255, 255, 255)), ("dark", (0x14, 0x17, 0x1A))])
def test_the_plots_are_painted_on_light_and_on_dark(file, tmp_path, scheme, paper):
    shot = tmp_path / "page.png"
    setting = {"light": 1, "dark": 0}[scheme]
    chromium(
        tmp_path,
        file,
        f"--blink-settings=preferredColorScheme={setting}",
        "--window-size=1200,4000",
        f"--screenshot={shot}",
    )
    pixels = np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")).astype(int)
    assert tuple(pixels[2, 2]) == paper
    assert (np.abs(pixels - BLUE).sum(2) < 12).sum() > 2_000, "no plot is to be seen"
