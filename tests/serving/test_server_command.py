"""`litheseg serve` as a process: what it prints, how it ends, and what it says to wrong options."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import httpx
import pytest
import warm
from tiny_server import FakePredictor, send

from litheseg.cli import main
from litheseg.deploy.export import export_bundle
from litheseg.errors import MissingExtraError
from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle
from litheseg.nn import slim
from litheseg.serving import check_extra, running
from litheseg.serving.running import run_until_stopped
from litheseg.serving.service import Service
from litheseg.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny" / "model.safetensors"
    header = BundleHeader(
        {"name": "ddrnet", "args": {"base": 8}}, Classes.from_names("abc"), widths=(1.0, 0.5), size=(32, 64)
    )
    save_bundle(path, slim(build_model("ddrnet", num_classes=3, base=8), (1.0, 0.5)), header)
    return path


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`litheseg serve` and its URL."""
    environment = os.environ | environment
    if arguments[0] == "-c":  # without what the others begin with
        command, pipes = [sys.executable, *arguments, "--port", "0"], {"stdout": PIPE, "stderr": PIPE, "text": True}
        running = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
    else:
        running = warm.start(["-m", "litheseg", "serve", *arguments, "--port", "0"], env=environment)
    try:
        lines = []
        for line in running.stdout:
            lines.append(line)
            if match := re.match(r"page +(http://\S+)", line):
                assert lines[0].startswith("width    1 to begin with") and lines[1].startswith("ms ")
                yield running, match[1]
                break
        else:
            pytest.fail(running.stderr.read())
    finally:
        running.kill()
        running.communicate()


def test_it_serves_and_ends_on_sigterm(bundle: Path) -> None:
    with process(str(bundle), LITHESEG_API_KEY="0123456789abcdef") as (running, url):
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        with httpx.Client(base_url=url, timeout=20) as client:
            assert client.get("/readyz").json() == {"status": "ready"}
            assert client.get("/v1/model").status_code == 401
            assert client.get("/v1/model", headers=headers).json()["name"] == "tiny"
            assert send(client, headers=headers).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0
        assert "Traceback" not in running.stderr.read()


WITHOUT_PYTORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "lightning", "timm", "scipy", "matplotlib", "safetensors"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from litheseg.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_box_without_pytorch_serves_an_export_in_little_memory(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export_bundle(load_bundle(bundle), tmp_path / "x", formats=("onnx",), widths=[1.0], check=False)
    command = ["-c", WITHOUT_PYTORCH, "serve", str(tmp_path / "x"), "--runtime", "onnxruntime"]
    with process(*command) as (running, url), httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/v1/model").json()["runtime"] == "onnxruntime"
        for path in ("mask", "overlay", "polygons?min_area=1", "rle"):
            assert send(client, path).status_code == 200
        status = Path(f"/proc/{running.pid}/status")
        if status.exists():
            peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            assert peak < 200 << 10, "kilobytes"
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0


def test_a_signal_lets_what_was_taken_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, urls = FakePredictor(dict.fromkeys((1.0, 0.5, 0.25), 0.3)), list[str]()
    made = Service(predictor, ServerSettings(workers=1), name="slow")  # type: ignore[arg-type]

    def clients() -> list[int]:
        while not urls:
            time.sleep(0.01)
        with httpx.Client(base_url=urls[0], timeout=20) as client, ThreadPoolExecutor(3) as requests:
            taken = [requests.submit(send, client) for _ in range(3)]
            while made.workers.running + made.workers.waiting < 3:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            while not made.workers.stopping:
                time.sleep(0.01)
            refused = send(client)
            return [*(future.result().status_code for future in taken), refused.status_code]

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        statuses = pool.submit(clients)
        run_until_stopped(made, "127.0.0.1", 0, grace=10, announce=urls.append)
    assert statuses.result() == [200, 200, 200, 503]
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "litheseg-http"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "'70000' is no port"),
        (["--max-upload", "much"], "'much' is no amount"),
        (["--width", "0.5", "--target-ms", "50"], "not allowed with"),
        (["--width", "0.3"], "no width 0.3; available: 1, 0.5"),
        (["--queue", "0"], "--queue 0 is too small"),
        (["--target-ms", "nan"], "--target-ms nan"),
        (["--api-key-file", "nowhere"], "cannot read the API key from nowhere"),
        (["--host", "no.such.host"], "cannot listen on no.such.host:8000"),
    ],
)
def test_wrong_options(bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["serve", str(bundle), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Service, str, int]]:
    """Service, host and port of each server that the command would have run."""
    found: list[tuple[Service, str, int]] = []
    monkeypatch.setattr(
        running, "run_until_stopped", lambda service, host, port, **_: found.append((service, host, port))
    )
    return found


def test_amounts_and_defaults(bundle: Path, started: list[tuple[Service, str, int]]) -> None:
    assert not main(["serve", str(bundle), "--max-upload", "1.5MB", "--max-pixels", "25k", "--workers", "3"])
    assert not main(["serve", str(bundle)])
    made = started[0][0].settings
    assert (made.max_upload, made.max_pixels, made.workers) == (1_500_000, 25_000, 3)
    service, host, port = started[1]
    assert (host, port, service.settings) == ("127.0.0.1", 8000, ServerSettings())


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", "0123456789abcdef", False),
        ("192.168.1.5", None, True),
        ("::", None, True),
    ],
)
def test_an_open_server_is_warned_of(
    bundle: Path,
    started: list[tuple[Service, str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    key: str | None,
    warned: bool,
) -> None:
    if key:
        monkeypatch.setenv("LITHESEG_API_KEY", key)
    assert not main(["serve", str(bundle), "--host", host])
    assert ("warning: anyone who reaches" in capsys.readouterr().err) == warned


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'uvicorn': pip install 'litheseg\[serve\]'"):
        check_extra()
