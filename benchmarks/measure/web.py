"""The page of an export in headless Chromium: seconds to the first mask, milliseconds from slider to mask.

The picture is chosen as soon as the page is there. Then the slider goes down the widths: from the key that moves it
until the label of the new width is painted. Beside it, the time of the network with resize and labels,
as the page shows it.

    litheseg export zoo:camvid-lite0 --output runs/page --format web --no-check
    python benchmarks/measure web --folder runs/page --picture data/camvid/val/0016E5_07959.png
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from records import save

from measure.common import arguments, show

CHANGED = """before => {
    const text = document.querySelector("#badge-left").textContent;
    return text.includes(" ms") && !text.startsWith(before);
}"""


def main() -> None:
    """Open the page anew for the first mask, then move the slider; print a table, write records."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--folder", type=Path, required=True, help="an export with its page")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    options = parser.parse_args()
    with served(options.folder) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        first = []
        for _ in range(options.rounds):
            context = browser.new_context(viewport={"width": 1280, "height": 800})  # with nothing in its cache
            page = context.new_page()
            first.append(first_mask(page, url, options.picture))
            if len(first) < options.rounds:
                context.close()
        page.wait_for_timeout(5_000)  # until all widths have run once
        steps = slide(page, options.picture, options.rounds)
        threads = page.evaluate("crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1")
        browser.close()
    rows: list[dict[str, Any]] = [{"width": "first mask", "slider_ms": 1e3 * statistics.median(first)}]
    for width, pairs in sorted(steps.items(), reverse=True):
        clock, work = (statistics.median(times) for times in zip(*pairs, strict=True))
        rows.append({"width": width, "slider_ms": clock, "work_ms": work})
    show(rows, f"{threads} threads")
    save(options, {"threads": threads, "rows": rows}, "playwright", clock="wall-clock time, medians")


def first_mask(page: Page, url: str, picture: Path) -> float:
    """Seconds from asking for the page to its first mask."""
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_function("() => crossOriginIsolated")
    page.set_input_files("#file", picture)
    page.locator("#badge-left", has_text="·").wait_for()
    return time.perf_counter() - began


def slide(page: Page, picture: Path, rounds: int) -> dict[float, list[tuple[float, float]]]:
    """By width: milliseconds from key to mask, and those of the work that the page shows."""
    found = defaultdict(list)
    for _ in range(rounds):
        page.focus("#width-left")
        page.keyboard.press("End")
        page.wait_for_timeout(2_000)
        page.set_input_files("#file", picture)  # anew: what the page knows of a picture it does not compute again
        page.wait_for_timeout(2_000)
        page.focus("#width-left")
        for _ in range(3):
            before = (page.text_content("#badge-left") or "").split(" ")[0]
            began = time.perf_counter()
            page.keyboard.press("ArrowLeft")
            page.wait_for_function(CHANGED, arg=before)
            clock = 1e3 * (time.perf_counter() - began)
            width, work = re.findall(r"[\d.]+", page.text_content("#badge-left") or "")[:2]
            found[float(width)].append((clock, float(work)))
            page.wait_for_timeout(300)
    return found


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static host."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def copyfile(self, *files: Any) -> None:
        """Send a file, unless the page was loaded anew meanwhile."""
        with suppress(ConnectionError):
            super().copyfile(*files)


if __name__ == "__main__":
    main()
