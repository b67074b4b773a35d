"""The server as clients meet it, over a real socket: answers, limits, overload, shutdown."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_server import WIDTHS, FakePredictor, client_of, encoded, picture, send, service, truth

from litheseg.errors import LithesegError
from litheseg.masks.classes import CAMVID_CLASSES
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim
from litheseg.runtime.predictor import Predictor
from litheseg.serving import service as service_module
from litheseg.serving.app import create_app
from litheseg.serving.running import Server
from litheseg.serving.schemas import ModelInfo, Polygons, ProblemDetails, RunLengths, Status
from litheseg.serving.service import Service
from litheseg.serving.settings import ServerSettings

KEY = "0123456789abcdef"


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


@pytest.fixture
def client(predictor: FakePredictor) -> Iterator[httpx.Client]:
    with client_of(service(predictor, max_upload=100_000, max_pixels=100_000, upload_timeout=0.5)) as made:
        yield made


def code(response: httpx.Response) -> str:
    """The problem's code (none for success); every refusal is a well-formed problem."""
    if response.is_success:
        return ""
    assert response.headers["content-type"] == "application/problem+json"
    problem = ProblemDetails.model_validate_json(response.content)
    assert problem.status == response.status_code
    return problem.type.removeprefix("urn:litheseg:")


def raw(client: httpx.Client, request: bytes, seconds: float = 5.0) -> bytes:
    """What the server sends until it closes, for requests that no library would make."""
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            if b"\r\n\r\n" in received and received.endswith(b"}"):
                break
        return received


HEAD = b"POST /v1/segment/mask HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("width", WIDTHS)
def test_mask(client: httpx.Client, predictor: FakePredictor, width: float) -> None:
    response = send(client, f"mask?width={width}")
    image = Image.open(BytesIO(response.content))
    assert (response.status_code, response.headers["content-type"], image.mode) == (200, "image/png", "P")
    assert np.array_equal(np.asarray(image), truth())
    assert predictor.calls[-1] == float(response.headers["litheseg-width"]) == width
    assert float(response.headers["litheseg-milliseconds"]) > 0
    assert float(response.headers["litheseg-queue-milliseconds"]) >= 0
    parts = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert parts == ["queue", "decode", "predict", "encode"]


def test_overlay(client: httpx.Client) -> None:
    response = send(client, "overlay?format=png&alpha=1")
    assert np.array_equal(np.asarray(Image.open(BytesIO(response.content))), picture())
    for format in ("jpeg", "webp"):
        response = send(client, f"overlay?format={format}")
        assert response.headers["content-type"] == f"image/{format}"
        assert Image.open(BytesIO(response.content)).size == (40, 24)


def test_polygons_and_run_lengths(client: httpx.Client) -> None:
    polygons = Polygons.model_validate_json(send(client, "polygons?tolerance=0").content)
    assert [(s.category, s.area, len(s.polygons)) for s in polygons.segments] == [
        ("red", 480, 1),
        ("green", 240, 1),
        ("blue", 240, 1),
    ]
    assert polygons.segments[2].polygons[0].exterior == [[20, 12], [40, 12], [40, 24], [20, 24]]
    runs = RunLengths.model_validate_json(send(client, "rle?compressed=false").content)
    assert runs.segments[0].segmentation.counts == [0, 480, 480]
    assert isinstance(RunLengths.model_validate_json(send(client, "rle").content).segments[0].segmentation.counts, str)


def test_model_and_status(client: httpx.Client) -> None:
    info = ModelInfo.model_validate_json(client.get("/v1/model").content)
    assert [(entry.index, entry.name, entry.color) for entry in info.classes][1] == (1, "green", "#00ff00")
    assert [entry.width for entry in info.widths] == list(WIDTHS)
    assert info.widths[0].miou == 0.75 and info.widths[1].miou is None
    assert all(entry.measured > 0 and entry.p95_ms is not None for entry in info.widths)
    assert info.limits.max_upload == 100_000 and not info.example
    status = Status.model_validate_json(client.get("/v1/status").content)
    assert status.ready and status.width == 1.0 and status.waiting == 0


def test_metrics(client: httpx.Client) -> None:
    send(client, "mask?width=0.5"), send(client, data=b"no image"), client.get("/nowhere")
    lines = set(client.get("/metrics").text.splitlines())
    assert {
        'litheseg_requests_total{path="/v1/segment/mask",status="200"} 1.0',
        'litheseg_requests_total{path="/v1/segment/mask",status="415"} 1.0',
        'litheseg_requests_total{path="other",status="404"} 1.0',
        'litheseg_refused_total{reason="not-an-image"} 1.0',
        'litheseg_request_seconds_count{width="0.5"} 1.0',
        "litheseg_queue_depth 0.0",
        "litheseg_width 1.0",
    } <= lines


def test_a_real_model_gives_its_predictors_masks(tmp_path: Path) -> None:
    header = BundleHeader({"name": "ddrnet", "args": {"base": 8}}, CAMVID_CLASSES, widths=(1.0, 0.5), size=(32, 64))
    save_bundle(tmp_path / "m.safetensors", slim(build_model("ddrnet", num_classes=11, base=8), (1.0, 0.5)), header)
    predictor = Predictor(tmp_path / "m.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with client_of(service(predictor)) as client:
        for width in (1.0, 0.5):
            response = send(client, f"mask?width={width}", encoded(image))
            mask = np.asarray(Image.open(BytesIO(response.content)))
            assert np.array_equal(mask, predictor(image, width=width))
        example = client.get("/v1/example?seed=4")
        assert Image.open(BytesIO(example.content)).size == (960, 480)
        assert send(client, data=example.content).status_code == 200


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("mask?width=0.3", "query.width"),
        ("mask?width=2", "query.width"),
        ("mask?width=nan", "query.width"),
        ("mask?width=half", "query.width"),
        ("mask?budget_ms=0", "query.budget_ms"),
        ("mask?width=1&budget_ms=10", "query.budget_ms"),
        ("overlay?format=gif", "query.format"),
        ("overlay?alpha=1.5", "query.alpha"),
        ("polygons?tolerance=-1", "query.tolerance"),
        ("polygons?min_area=0", "query.min_area"),
    ],
)
def test_parameters_out_of_range(client: httpx.Client, path: str, parameter: str) -> None:
    response = send(client, path)
    assert (response.status_code, code(response)) == (422, "invalid-parameter")
    assert response.json()["errors"][0]["where"] == parameter


def test_uploads_that_are_no_form(client: httpx.Client) -> None:
    url = "/v1/segment/mask"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert code(client.post(url, content=encoded(picture()), headers={"Content-Type": "image/png"})) == "not-a-form"
    assert code(client.post(url)) == "not-a-form"
    assert code(client.post(url, content=b"garbage", headers=form)) == "malformed-upload"
    assert code(client.post(url, content=b"", headers=form)) == "malformed-upload"
    assert code(client.post(url, content=b"x", headers={"Content-Type": "multipart/form-data"})) == "malformed-upload"
    image = encoded(picture())
    for files in (
        {"picture": ("a.png", image)},
        {"image": (None, "text")},
        {"image": ("a.png", image), "width": (None, "0.5")},
        [("image", ("a.png", image)), ("image", ("b.png", image))],
    ):
        response = client.post(url, files=files)
        assert (response.status_code, code(response)) == (400, "malformed-upload")


def test_bad_images(client: httpx.Client) -> None:
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    for data, status, expected in (
        (b"hello", 415, "not-an-image"),
        (b"", 415, "not-an-image"),
        (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 422, "animated-image"),
        (encoded(picture())[:60], 422, "damaged-image"),
        (encoded(np.zeros((400, 400, 3), np.uint8)), 413, "too-many-pixels"),
    ):
        response = send(client, data=data)
        assert (response.status_code, code(response)) == (status, expected)
    assert send(client).status_code == 200


def test_uploads_that_are_too_large_are_told_so(client: httpx.Client) -> None:
    response = send(client, data=bytes(5_000_000))
    assert (response.status_code, code(response)) == (413, "upload-too-large")

    def endless() -> Iterator[bytes]:  # no Content-Length
        yield PART
        for _ in range(100):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = client.post("/v1/segment/mask", content=endless(), headers=headers)
    assert (response.status_code, code(response)) == (413, "upload-too-large")


def test_who_asks_first_is_refused_before_sending(client: httpx.Client) -> None:
    began = time.monotonic()
    answer = raw(client, HEAD + b"Content-Length: 900000000\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and time.monotonic() - began < 20


def test_slow_clients_are_cut_off(client: httpx.Client) -> None:
    began = time.monotonic()
    answer = raw(client, HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
    assert answer.startswith(b"HTTP/1.1 408") and b"upload-too-slow" in answer
    assert time.monotonic() - began < 20
    assert send(client).status_code == 200


def test_clients_that_leave_are_not_worked_for(predictor: FakePredictor) -> None:
    go, made = threading.Event(), service(predictor, workers=1)
    predictor.before, predictor.calls = lambda: go.wait(10), []
    with client_of(made) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, client, "mask?width=1")
        wait_for(lambda: made.workers.running == 1)
        body = PART + encoded(picture()) + b"\r\n--b--\r\n"
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: made.workers.waiting == 1)
        wait_for(lambda: made.workers.waiting == 0)
        go.set()
        assert first.result().status_code == 200
        assert predictor.calls == [1.0]
        wait_for(lambda: "litheseg_abandoned_total 1.0" in client.get("/metrics").text)


def test_paths_and_methods(client: httpx.Client) -> None:
    assert code(client.get("/nowhere")) == "not-found"
    response = client.put("/v1/model")
    assert code(response) == "method-not-allowed" and response.headers["allow"] == "GET"
    assert code(client.get("/v1/example")) == "not-found"  # red, green and blue are no streets


def test_what_nobody_foresaw_stays_inside(client: httpx.Client, predictor: FakePredictor, caplog) -> None:
    def full_disk() -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    predictor.before = full_disk
    response = send(client)
    assert (response.status_code, code(response)) == (500, "internal-error")
    assert "secret" not in response.text and "Traceback" not in response.text
    assert "/secret/path" in caplog.text
    predictor.before = lambda: None
    assert send(client).status_code == 200


def test_a_time_limit(predictor: FakePredictor) -> None:
    predictor.seconds = dict.fromkeys(WIDTHS, 0.4)
    made = Service(predictor, ServerSettings(workers=1, timeout=0.2), name="slow")  # type: ignore[arg-type]
    made._ready.set()
    with client_of(made) as client:
        response = send(client)
        assert (response.status_code, code(response)) == (503, "too-slow")
        assert response.headers["retry-after"] == "1"


# ---------------------------------------------------------------- keys


def test_a_key_guards_the_api_and_not_health_and_page() -> None:
    with client_of(service(api_key=KEY)) as client:
        for path in ("/v1/model", "/v1/status", "/metrics"):
            response = client.get(path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", f"Basic {KEY}", KEY, "Bearer schlüssel"):
            assert code(send(client, headers={"Authorization": wrong.encode("latin-1")})) == "unauthorised"
        assert send(client, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        for path in ("/", "/page/app.js", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert code(send(client, data=bytes(3_000_000))) == "unauthorised"


# ---------------------------------------------------------------- load


def burst(client: httpx.Client, clients: int, each: int, path: str = "mask") -> list[httpx.Response]:
    """So many clients at once, each with one request after the other."""
    with ThreadPoolExecutor(clients) as pool:
        runs = [pool.submit(lambda: [send(client, path) for _ in range(each)]) for _ in range(clients)]
        return [response for run in runs for response in run.result()]


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def test_overload_narrows_before_anything_is_refused() -> None:
    slow = FakePredictor({1.0: 0.05, 0.5: 0.02, 0.25: 0.004})
    with client_of(service(slow, workers=1, queue=16, target_ms=100)) as client:
        assert send(client).headers["litheseg-width"] == "1"
        responses = burst(client, clients=10, each=12)
        assert Counter(response.status_code for response in responses) == {200: 120}
        widths = Counter(response.headers["litheseg-width"] for response in responses)
        assert widths["0.25"] > 60, widths
        totals = [
            float(r.headers["litheseg-milliseconds"]) + float(r.headers["litheseg-queue-milliseconds"])
            for r in responses[20:]
        ]
        assert np.percentile(totals, 90) < 400, "ten clients at width 1 would wait 500 ms each"


def test_what_does_not_fit_is_refused_at_once_and_nothing_is_lost() -> None:
    slow = FakePredictor(dict.fromkeys(WIDTHS, 0.05))
    with client_of(service(slow, workers=1, queue=4)) as client:
        responses = burst(client, clients=16, each=2)
        counts = Counter(response.status_code for response in responses)
        assert set(counts) == {200, 503} and sum(counts.values()) == 32
        refused = [response for response in responses if response.status_code == 503]
        assert {code(response) for response in refused} == {"busy"}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        narrow = Counter(r.headers["litheseg-width"] for r in responses if r.status_code == 200)
        assert narrow["0.25"] >= counts[200] / 2
        assert send(client).status_code == 200


def test_health_answers_while_all_workers_are_busy(predictor: FakePredictor) -> None:
    go = threading.Event()
    made = service(predictor, workers=1)
    predictor.before = lambda: go.wait(10)
    with client_of(made) as client, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(send, client) for _ in range(3)]
        wait_for(lambda: (made.workers.running, made.workers.waiting) == (1, 2))
        began = time.monotonic()
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/v1/status").json() == {"ready": True, "width": 1.0, "waiting": 2, "running": 1}
        assert time.monotonic() - began < 8, "they did not wait for a worker"
        go.set()
        assert [future.result().status_code for future in taken] == [200, 200, 200]


def test_so_many_uploads_at_once(predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_UPLOADS", 2)
    with client_of(service(predictor)) as client:
        address = urlsplit(str(client.base_url))
        slow = [socket.create_connection((address.hostname, address.port)) for _ in range(2)]
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
        wait_for(lambda: code(send(client)) == "busy")
        for connection in slow:
            connection.close()
        wait_for(lambda: send(client).status_code == 200)


def test_before_it_is_ready() -> None:
    made = Service(FakePredictor(), ServerSettings(), name="cold")  # type: ignore[arg-type]
    with client_of(made) as client:
        assert client.get("/healthz").status_code == 200
        for response in (client.get("/readyz"), send(client)):
            assert (response.status_code, code(response)) == (503, "starting")
        made.prepare()
        assert client.get("/readyz").status_code == send(client).status_code == 200


def test_shutdown_finishes_what_was_taken_and_refuses_the_rest(predictor: FakePredictor) -> None:
    go, made = threading.Event(), service(predictor, workers=1)
    predictor.before = lambda: go.wait(10)
    with client_of(made) as client, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(send, client) for _ in range(2)]
        wait_for(lambda: (made.workers.running, made.workers.waiting) == (1, 1))
        made.workers.stop()
        assert [code(response) for response in (send(client), client.get("/readyz"))] == ["stopping", "stopping"]
        assert client.get("/healthz").status_code == 200
        go.set()
        assert [future.result().status_code for future in taken] == [200, 200]
        assert made.workers.join(5)


def test_an_address_that_is_taken(predictor: FakePredictor) -> None:
    app = create_app(service(predictor))
    with Server(app) as server, pytest.raises(LithesegError, match=f"{server.port} .*choose another --port"):
        Server(app, port=server.port)
    with pytest.raises(LithesegError, match=r"cannot listen on no\.such\.host"):
        Server(app, "no.such.host")


# ---------------------------------------------------------------- what is said of it


def test_every_problem_that_can_be_sent_is_documented(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ProblemDetails"}, path
    mask = document["paths"]["/v1/segment/mask"]["post"]
    assert " ".join(sorted(mask["responses"])) == "200 400 401 403 408 413 415 421 422 500 503"
    width = next(entry for entry in mask["parameters"] if entry["name"] == "width")
    assert width["schema"]["enum"] == list(WIDTHS)
    assert json.dumps(document).count("$ref") > 20


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    names = [file.name for file in (Path(service_module.__file__).parent / "page").iterdir()]
    assert {"index.html", "style.css", "app.js", "mark.svg"} <= set(names)
    for name in names:
        response = client.get(f"/page/{name}")
        assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "@import" not in text
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"):
        assert client.get(f"/page/{name}").status_code == 404
