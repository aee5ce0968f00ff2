"""The page of `fastdump report`: in a browser without a network, of hostile and of huge targets."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import targets
from fastdump._heap import Heap
from fastdump._words import MOST_CELLS, PAGE_CLASSES, ModuleRange, Words
from fastdump.text import printable
from hostile import EXE, NAMES, hostile

FASTDUMP = [sys.executable, "-m", "fastdump"]
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
MOST_PAGE = 15_000_000  # of 70,000 regions; 4.8 MB of it are Plotly
PAGE_SIZE = 4096


class Page(HTMLParser):
    """What is in a page: its elements, and the text of each row of its tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.texts: dict[str, str] = {}  # of elements that have an id
        self.legend: list[str] = []  # of the map
        self._in_legend = False
        self._id = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") or ""
        if tag == "div":
            self._in_legend = self._id == "map-legend"
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        self._id = ""
        if tag == "div":
            self._in_legend = False

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1] += data + " "
        if self._in_legend:
            self.legend.append(data)
        if self._id:
            self.texts[self._id] = self.texts.get(self._id, "") + data

    def count(self, *tags: str) -> int:
        return sum(tag in tags for tag, _ in self.elements)

    @property
    def data(self) -> Any:
        return json.loads(self.texts["data"])


class Shown(NamedTuple):
    """What a browser made of a page, and what it complained of."""

    page: Page
    complaints: list[str]


def show(path: Path, fragment: str = "") -> Shown:
    """Open a page in a browser without a network, and let its scripts run."""
    browser = next(filter(shutil.which, BROWSERS), None)
    assert browser, f"none of {', '.join(BROWSERS)} is here: bash .ci/setup test installs one"
    with_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--net", *with_root, browser, "--headless", "--no-sandbox"]
    command += ["--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={path.parent}/user"]
    command += ["--virtual-time-budget=60000", "--dump-dom", f"{path.as_uri()}{fragment}"]
    result = subprocess.run(command, capture_output=True, timeout=100, check=True)
    said = result.stderr.decode("utf-8", "replace").splitlines()
    return Shown(Page(result.stdout.decode()), [line for line in said if "CONSOLE" in line])


def write(source: object, path: Path, *options: str) -> Page:
    """The page of a source, as it lies in its file."""
    command = [*FASTDUMP, "report", str(source), "-o", str(path), *options]
    subprocess.run(command, check=True, capture_output=True)
    return Page(path.read_text())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Page]]:
    """A process whose names are markup, and its page."""
    folder = tmp_path_factory.mktemp("attacked")
    with hostile(folder) as pid:
        path = folder / "report.html"
        yield pid, path, write(pid, path)


def test_a_browser_draws_it_and_takes_no_name_as_markup(
    attacked: tuple[int, Path, Page],
) -> None:
    _, path, page = attacked
    shown, complaints = show(path)
    assert complaints == []
    body = next(attributes for tag, attributes in shown.elements if tag == "body")
    assert body.get("data-drawn") == "yes"
    drawn = [attributes.get("class") or "" for _, attributes in shown.elements]
    assert sum("hm" in classes.split() for classes in drawn) == 3  # two strips, and the map
    assert sum("bars" in classes.split() for classes in drawn) == 1
    assert shown.count("script") == page.count("script") == 3
    assert shown.count("img", "b", "iframe", "object", "link") == 0
    for name in [*NAMES, EXE]:
        text = printable(name.decode("utf-8", "surrogateescape"))
        assert any(text in row for row in shown.rows), text


# Waits until the page is drawn, then moves the mouse over both pictures, and changes the colours.
POINTING = """<script>
const waiting = setInterval(() => {
  if (!document.body.dataset.drawn) return;
  clearInterval(waiting);
  for (const id of ["strip", "map"]) {
    const area = document.querySelector(`#${id} .nsewdrag`), box = area.getBoundingClientRect();
    const x = box.left + box.width * 0.3, y = box.top + box.height * 0.7;
    const at = { bubbles: true, clientX: x, clientY: y };
    for (const type of ["mouseover", "mousemove"]) area.dispatchEvent(new MouseEvent(type, at));
  }
  document.getElementById("map-by").value = "kind";
  document.getElementById("map-by").dispatchEvent(new Event("change"));
}, 20);
</script>"""


def test_pointing_at_a_picture_tells_what_is_there(
    attacked: tuple[int, Path, Page], tmp_path: Path
) -> None:
    _, path, page = attacked
    changed = tmp_path / "pointed.html"
    bare = re.sub(
        "<meta http-equiv[^>]*>", "", path.read_text(), count=1
    )  # it allows no script more
    changed.write_text(bare.replace("</body>", f"{POINTING}</body>"))
    shown, complaints = show(changed)
    assert complaints == []
    start, end, told = re.split("[- ]", shown.texts["strip-detail"], maxsplit=2)
    strip = next(strip for strip in page.data["strips"] if strip[:2] == [start, end])
    assert page.data["kinds"][strip[5]] in told
    assert strip[7] in told
    address, told = shown.texts["map-detail"].split(" ", 1)
    number = page.data["cells"]["start"].index(address)
    assert page.data["kinds"][page.data["cells"]["kind"][number]] in told
    assert any(f"1 page {name}" in told for name in PAGE_CLASSES)
    kinds = {page.data["kinds"][kind] for kind in page.data["cells"]["kind"]}
    assert {text for text in shown.legend if text} == kinds


def test_the_page_asks_nobody_for_anything(attacked: tuple[int, Path, Page]) -> None:
    for tag, attributes in attacked[2].elements:
        assert not {"src", "href", "srcset", "action", "onload", "onerror"} & set(attributes), tag


def test_its_policy_stops_what_it_did_not_bring(
    attacked: tuple[int, Path, Page], tmp_path: Path
) -> None:
    """Scripts and requests of somebody else: so the test above would see one, too."""
    changed = tmp_path / "changed.html"
    more = "<script>document.body.dataset.owned='yes'</script><img src='http://127.0.0.1:9/'>"
    changed.write_text(attacked[1].read_text().replace("</body>", f"{more}</body>"))
    shown, complaints = show(changed)
    body = next(attributes for tag, attributes in shown.elements if tag == "body")
    assert (body.get("data-drawn"), body.get("data-owned")) == ("yes", None)
    assert sum("script-src" in line for line in complaints) == 1
    assert sum("img-src" in line for line in complaints) == 1


def test_its_regions_are_those_of_the_process(attacked: tuple[int, Path, Page]) -> None:
    pid, _, page = attacked
    with open(f"/proc/{pid}/maps", "rb") as file:
        ranges = [line.split()[0].decode().split("-") for line in file]
    regions = page.data["regions"]
    pairs = zip(regions["start"], regions["end"], strict=True)
    found = sorted((int(start, 16), int(end, 16)) for start, end in pairs)
    assert found == [(int(a, 16), int(b, 16)) for a, b in ranges]
    strips = page.data["strips"]
    assert [(int(s[0], 16), int(s[1], 16)) for s in strips] == found
    rss, start = {}, 0
    for line in Path(f"/proc/{pid}/smaps").read_bytes().decode("latin1").split("\n"):
        if line.startswith("Rss:"):
            rss[start] = int(line.split()[1]) << 10
        elif "-" in line.split(" ")[0]:
            start = int(line.split("-")[0], 16)
    columns = (regions[key] for key in ("start", "kind", "resident"))
    for address, kind, resident in zip(*columns, strict=True):
        if page.data["kinds"][kind] != "kernel page":
            assert resident == rss[int(address, 16)]
    assert sum(regions["resident"]) == sum(strip[4] for strip in strips)


def test_seventy_thousand_regions(many_maps: targets.Target, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(many_maps.pid, path, "--no-strings")
    assert path.stat().st_size < MOST_PAGE
    address = f"{many_maps.truth['start'] + 1234 * PAGE_SIZE:x}"
    shown, complaints = show(path, f"#{address}-")
    assert complaints == []
    count = len(Path(f"/proc/{many_maps.pid}/maps").read_bytes().splitlines())
    assert count > many_maps.truth["count"]
    assert f"1 of {count:,}" in shown.texts["matches"]
    assert any(address in row for row in shown.rows)
    assert len(shown.data["strips"]) <= 1500
    assert sum(strip[2] for strip in shown.data["strips"]) == count


def test_a_dump_has_the_page_of_its_process(tmp_path: Path) -> None:
    with targets.start("hostile", "plain") as target:
        dump = tmp_path / "dump.core"
        subprocess.run([*FASTDUMP, "dump", str(target.pid), "-f", "core", "-o", dump, "-q"])
        live = write(target.pid, tmp_path / "live.html", "--pause", "fork").data
        assert live["name"] == str(target.pid)
    dumped = write(dump, tmp_path / "dump.html").data
    for key in ("cells", "modules", "kinds"):
        assert live[key] == dumped[key]
    assert (live["live"], dumped["live"]) == (True, False)


def test_it_is_private_and_replaces_nothing_unasked(
    attacked: tuple[int, Path, Page], tmp_path: Path
) -> None:
    pid, path, _ = attacked
    assert path.stat().st_mode & 0o777 == 0o600
    mine = tmp_path / "report.html"
    mine.write_text("mine")
    command = [*FASTDUMP, "report", str(pid), "--no-strings", "-o"]
    result = subprocess.run([*command, mine], capture_output=True, text=True)
    assert (result.returncode, mine.read_text()) == (7, "mine")
    assert "--force" in result.stderr
    write(pid, mine, "--no-strings", "--force")
    streamed = subprocess.run([*command, "-"], capture_output=True, check=True).stdout
    assert streamed.decode() == mine.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_without_plotly_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "plotly.py").write_text("raise ImportError")
    result = subprocess.run(
        [*FASTDUMP, "report", str(os.getpid()), "-o", tmp_path / "report.html"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 2
    assert "pip install plotly" in result.stderr
    assert not (tmp_path / "report.html").exists()


# --- cells --------------------------------------------------------------------------------------


def _page_of(kind: str, rng: random.Random) -> bytes:
    if kind == "zero":
        return bytes(PAGE_SIZE)
    if kind == "text":
        return bytes(rng.choices(range(0x20, 0x7F), k=PAGE_SIZE))
    if kind == "pointers":
        words = (rng.randrange(0x7F0000000000, 0x7FFF00000000, 8) for _ in range(PAGE_SIZE // 8))
        return b"".join(word.to_bytes(8, "little") for word in words)
    if kind == "high entropy":
        return rng.randbytes(PAGE_SIZE)
    return rng.choice((b"\x01", b"\xff\0")) * (PAGE_SIZE // 2) + bytes(PAGE_SIZE)[: PAGE_SIZE // 2]


@pytest.mark.parametrize("pages", [1, 4097, MOST_CELLS + 1, 3 * MOST_CELLS + 7])
def test_cells_hold_every_page_in_order(pages: int) -> None:
    seed = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
    print(f"FASTDUMP_TEST_SEED={seed}")
    rng = random.Random(seed)
    samples = {kind: _page_of(kind, rng) for kind in PAGE_CLASSES}
    kinds = rng.choices(PAGE_CLASSES, k=256)
    buffer = b"".join(samples[kind][:PAGE_SIZE] for kind in kinds)
    words = Words([ModuleRange(0, 1, 1)], Heap([]), lambda _: [])
    base = 0x7F00_0000_0000
    fed = []
    for at in range(0, pages, 256):
        part = kinds[: pages - at]
        address = base + 2 * at * PAGE_SIZE  # with a gap behind each buffer
        words.enter(address, buffer[: len(part) * PAGE_SIZE])
        fed += [(address + n * PAGE_SIZE, kind) for n, kind in enumerate(part)]
    each, cells = words.cell_size // PAGE_SIZE, words.cells
    assert len(cells) == -(-pages // each) <= MOST_CELLS
    assert each == 1 or len(cells) > MOST_CELLS // 2
    for n, cell in enumerate(cells):
        part = fed[n * each : (n + 1) * each]
        assert cell.address == part[0][0]
        assert list(cell.pages) == [sum(kind == k for _, kind in part) for k in PAGE_CLASSES]
