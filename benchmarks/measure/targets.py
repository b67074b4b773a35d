"""One network on every target that runs on this machine, timed in turns in one run, with what its certificate says.

Every format of `litheseg.bundle.targets` is exported by `litheseg export`, fp32 and int8, to a folder of its own below
--exports, which is kept: what is there already is not made again, wherever it was made. A converter that needs an
environment of its own, as LiteRT's does, is named by that environment's Python (--converter). All networks run here, on
one thread; so does ONNX Runtime Web, in headless Chromium. What is not installed, or cannot run here, is a row that
says so.

Each time is of a picture to its mask, resize and labels included; in the browser, as its page shows it. Beside it stand
the certificate's comparison with PyTorch, and the share of pixels of the timed pictures that are labelled like PyTorch.

    python benchmarks/measure targets --data data/camvid --exports runs/targets --converter litert=litert/bin/python
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from records import save

from litheseg.bundle.exported import EXPORT_FILE, load_export
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.targets import STORED_PRECISIONS, TARGETS, Target
from litheseg.data import open_source
from litheseg.data.sources.base import spread
from litheseg.deploy.export import CERTIFICATE_FILE
from litheseg.deploy.parity import Certificate, Reference, pytorch_reference
from litheseg.deploy.web import WebPage
from litheseg.errors import LithesegError, MissingExtraError, first_line
from litheseg.files import atomic_folder
from litheseg.machine import interleave
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import open_engine
from litheseg.runtime.pipeline import Pipeline
from measure.common import arguments, both_clocks, show, summary

ROOT = Path(__file__).parents[2]
THREADS = 1
PICTURES = 4
WEB = "onnxruntime-web"
LIBRARIES = (*(target.package for target in TARGETS.values()), "numpy", "playwright")
OPENED = "sessionStorage.setItem('litheseg-isolated', 'tried')"  # the page stays without threads
SEGMENT = """async ([index, width, int8]) => {
    const { getJson, segment } = await import(new URL("page/api.js", location).href);
    await getJson("/v1/model");
    const { work, mask } = await segment(window.pictures[index], { width, int8 });
    window.mask = mask;
    return work;
}"""
PICTURE = """text => (window.pictures ??= []).push(new Blob([Uint8Array.from(atob(text), one => one.charCodeAt(0))]))"""

Times = tuple[float, float]


@dataclass
class Entry:
    """A target in one precision.

    Attributes:
        row: what is known of it.
        labels: of the pictures; none where it cannot run.
        timed: labels the next picture; CPU time and wall-clock time, in milliseconds.
    """

    row: dict[str, Any]
    labels: Sequence[np.ndarray] = ()
    timed: Callable[[], Times] = field(default=lambda: (0.0, 0.0))


def main() -> None:
    """Export what is missing, time everything, print a table, write records."""
    options = parse()
    torch.set_num_threads(THREADS)
    bundle, source = load_bundle(options.model), open_source("auto", options.data)
    pictures = [source.read_image(sample) for sample in spread(source.samples("val"), PICTURES)]
    expected = list(map(partial(pytorch_labels, pytorch_reference(bundle, options.width)), pictures))
    with ExitStack() as stack:
        entries = [*in_process(pictures, options), *in_browser(bundle.header, pictures, options, stack)]
        calls = {number: entry.timed for number, entry in enumerate(entries) if entry.labels}
        for number, passes in interleave(calls, options.rounds, timed=lambda call: call()).items():
            entry = entries[number]
            same = [float((own == wanted).mean()) for own, wanted in zip(entry.labels, expected, strict=True)]
            entry.row |= {"times": summary(passes), "agreement": sum(same) / len(same)}
    rows = [entry.row for entry in entries]
    show(rows, "milliseconds of a picture to its mask")
    clock = "CPU time and wall-clock time of a picture to its mask, in turns, one thread"
    save(options, {"rows": rows}, *LIBRARIES, clock=clock)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, size=(360, 480), rounds=30)
    parser.add_argument("--model", default="zoo:camvid-lite0")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--data", type=Path, required=True, help="labelled: to calibrate on, to compare on, to time")
    kept = "where there is a folder and a log for each format; a folder that is there is not made again"
    parser.add_argument("--exports", type=Path, required=True, help=kept)
    other = "make this format with the Python of another environment, which has the converter and litheseg's packages"
    parser.add_argument("--converter", action="append", default=[], metavar="FORMAT=PYTHON", help=other)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    return parser.parse_args()


def pytorch_labels(reference: Reference, picture: np.ndarray) -> np.ndarray:
    """Those of PyTorch by itself."""
    logits = torch.from_numpy(reference(picture))[None]
    return F.interpolate(logits, picture.shape[:2], mode="bilinear")[0].argmax(0).numpy()


def in_process(pictures: Sequence[np.ndarray], options: argparse.Namespace) -> Iterator[Entry]:
    """Every target in every precision."""
    for target in TARGETS.values():
        folder, problem = options.exports / target.format, exported(target, options)
        for precision in target.precisions:
            known = facts(folder, target, options.width, precision)
            row = {"target": target.runtime, "precision": precision, **known}
            try:
                how = {"width": options.width, "runtime": target.runtime, "precision": precision, "threads": THREADS}
                engine = open_engine(folder, **how)
                pipeline = Pipeline(engine, tuple(options.size), THREADS)
                labels = list(map(pipeline, pictures))
            except LithesegError as error:
                own = folder.exists() and precision != "int8"  # of the runtime; else of the export
                said = (own and str(error)) or problem or str(error)
                yield Entry({**row, "missing": said.replace(str(options.exports), options.exports.name)})
                continue
            following = partial(next, map(pipeline, itertools.cycle(pictures)))
            yield Entry(row, labels, partial(both_clocks, following))


def exported(target: Target, options: argparse.Namespace) -> str:
    """Make an export where there is none; what its log says was wrong, "" for nothing."""
    folder, log = options.exports / target.format, options.exports / f"{target.format}.log"
    if not (folder / EXPORT_FILE).exists():
        python = dict(pair.split("=", 1) for pair in options.converter).get(target.format, sys.executable)
        command = [python, "-m", "litheseg", "export", options.model, "--output", folder, "--format", target.format]
        command += ["--data", options.data, "--widths", f"{options.width:g}", "--size", "{}x{}".format(*options.size)]
        command += ["--precision", "int8" if "int8" in target.precisions else "fp32"]
        print(f"exporting {target.format}; see {log}", file=sys.stderr)
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as said:
            how = {"stdout": said, "stderr": said, "env": os.environ | {"PYTHONPATH": path}}
            subprocess.run(list(map(str, command)), check=False, **how)
    lines = log.read_text().splitlines() if log.exists() else []
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


def facts(folder: Path, target: Target, width: float, precision: str) -> dict[str, Any]:
    """Size and certificate of a network; of one that is stored in another precision than it runs in, only the size."""
    try:
        export = load_export(folder)
        artefact = export.find(width, target.runtime, precision)
    except LithesegError:
        return {}
    size = {"megabytes": export.own_bytes(artefact) / 1e6}
    content = json.loads((folder / CERTIFICATE_FILE).read_text()) if (folder / CERTIFICATE_FILE).exists() else {}
    values = content.get("certificates", {}).get(artefact.path)
    if values is None or artefact.precision != precision:
        return size
    found = Certificate(**{name: value for name, value in values.items() if name != "agreement"})
    kept = ("runtime", "images", "pixels", "differing", "miou", "reference_miou")
    worst = min(found.changes.items(), key=lambda change: change[1], default=None)
    certificate = {name: values[name] for name in kept} | {"worst_class": worst}
    floats = content.get("int8", {}).get(artefact.path, {}).get("kept", ())
    return size | {"certificate": certificate} | ({"kept": len(floats)} if precision == "int8" else {})


# --- the browser -----------------------------------------------------------------------------------------------------


def in_browser(
    header: BundleHeader, pictures: Sequence[np.ndarray], options: argparse.Namespace, stack: ExitStack
) -> Iterator[Entry]:
    """ONNX Runtime Web, of the networks that ONNX Runtime runs; the stack closes the browser."""
    problem, opened, networks = "", None, options.exports / "onnx"
    for precision in STORED_PRECISIONS:
        known = facts(networks, TARGETS["onnxruntime"], options.width, precision)
        row = {"target": WEB, "precision": precision, **known}
        if known and opened is None and not problem:
            try:
                opened = Browser(page_of(header, networks), pictures, options.chromium, stack)
            except Exception as error:  # playwright's errors are known only where it is installed
                problem = first_line(error)
        if opened is None or not known:
            yield Entry({**row, "missing": problem if known else f"the ONNX export has no {precision} network"})
            continue
        segment = partial(opened.segment, options.width, precision == "int8")
        labels = [opened.labels(segment, index, picture.shape[:2]) for index, picture in enumerate(pictures)]
        yield Entry(row, labels, partial(opened.timed, segment, itertools.cycle(range(len(pictures)))))


def page_of(header: BundleHeader, networks: Path) -> Path:
    """The folder of a page with these networks, beside theirs."""
    folder = networks.with_name("web")
    if not folder.exists():
        page = WebPage.prepare(header, None)
        with atomic_folder(folder) as made:
            shutil.copytree(networks, made, dirs_exist_ok=True)
            page.write(made)
    return folder


class Browser:
    """A page of litheseg's in headless Chromium, which holds the pictures; it computes in one thread.

    Raises:
        LithesegError: there is no Chromium, or nothing that drives it.
    """

    def __init__(self, folder: Path, pictures: Sequence[np.ndarray], chromium: str | None, stack: ExitStack) -> None:
        try:
            from playwright.sync_api import sync_playwright
        except ImportError as error:
            raise MissingExtraError("playwright", None, "a browser") from error
        from measure.web import served

        if chromium is None:
            raise LithesegError("there is no Chromium; install it, or name it with --chromium")
        url = stack.enter_context(served(folder))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        stack.callback(browser.close)
        self._page = browser.new_page()
        self._page.add_init_script(OPENED)
        self._page.goto(url)
        for picture in pictures:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            self._page.evaluate(PICTURE, base64.b64encode(file.getvalue()).decode())
        processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
        self._processes = [int(process["id"]) for process in processes if process["type"] == "renderer"]

    def segment(self, width: float, int8: bool, index: int) -> float:
        """Label a picture; milliseconds, as the page shows them."""
        return float(self._page.evaluate(SEGMENT, [index, width, int8]))

    def labels(self, segment: Callable[[int], float], index: int, size: tuple[int, int]) -> np.ndarray:
        """Those of a picture, H x W."""
        segment(index)
        return np.array(self._page.evaluate("Array.from(window.mask.indices)"), np.uint8).reshape(size)

    def timed(self, segment: Callable[[int], float], indices: Iterator[int]) -> Times:
        """Label the next picture; CPU time and wall-clock time."""
        before = self._cpu()
        took = segment(next(indices))
        return 1e3 * (self._cpu() - before), took

    def _cpu(self) -> float:
        """Seconds that its processes have computed, by their own clocks: see clock_getcpuclockid(3)."""
        return sum(time.clock_gettime(~process << 3 | 2) for process in self._processes)


if __name__ == "__main__":
    main()
