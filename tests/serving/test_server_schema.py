"""The server keeps to its OpenAPI document, whatever is sent: requests are made from it, right and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from schemathesis import GenerationMode
from tiny_server import encoded, picture, service

from litheseg.serving import app

SERVER = str(Path(app.__file__).parent)
OPERATIONS = [
    *(("POST", f"/v1/segment/{form}") for form in ("mask", "overlay", "polygons", "rle")),
    *(("GET", path) for path in ("/v1/model", "/v1/status", "/v1/example", "/metrics", "/healthz", "/readyz")),
]
WITH_PARAMETERS = [path for method, path in OPERATIONS if method == "POST" or path == "/v1/example"]

_IMAGES = st.sampled_from([encoded(picture()), encoded(picture(5, 3), "JPEG"), encoded(picture(9, 16), "WEBP")])
for kind in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(kind, _IMAGES)


@pytest.fixture(autouse=True)
def _only_constants_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis tries constants of all modules that happen to be there, and reads hundreds of files for them."""
    monkeypatch.setattr(providers, "is_local_module_file", lambda file: file.startswith(SERVER), raising=False)


@pytest.fixture(scope="module")
def schema() -> Iterator[schemathesis.BaseSchema]:
    made = service(queue=64, allow_hosts=("*",))
    yield schemathesis.openapi.from_asgi("/openapi.json", app.create_app(made))
    made.workers.close()


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, GenerationMode.POSITIVE) for method, path in OPERATIONS),
        *((method, path, GenerationMode.NEGATIVE) for method, path in OPERATIONS if path in WITH_PARAMETERS),
    ],
)
def test_answers_are_as_documented(
    schema: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        # No schema says that of two parameters only one may be given.
        assume(mode is GenerationMode.NEGATIVE or not {"width", "budget_ms"} <= set(case.query))
        case.call_and_validate()

    answers()


def test_all_operations_are_tried(schema: schemathesis.BaseSchema) -> None:
    documented = {(method.upper(), path) for path, item in schema.raw_schema["paths"].items() for method in item}
    assert documented == set(OPERATIONS)
