"""Which names the server answers to, and whose pages may send it images."""

from __future__ import annotations

import httpx
import pytest
from tiny_server import FakePredictor, client_of, send, service

from litheseg.errors import LithesegError
from litheseg.serving.app import create_app
from litheseg.serving.hosts import Hosts, is_loopback
from litheseg.serving.problems import Problem
from litheseg.serving.running import Server
from litheseg.serving.schemas import ProblemDetails


def refusal(hosts: Hosts, host: str | None, origin: str | None = None, method: str = "POST") -> str:
    """The code; none if the request passes."""
    try:
        hosts.check(method, host=host, origin=origin)
    except Problem as problem:
        return problem.code
    return ""


LOOPBACK = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "localhost.", "[::1]", "[::1]:8000", "127.0.0.2"]
STRANGERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil"]
BROKEN = ["", "[::1", "::1]", "localhost:http", "local host", "localhost/x", "localhost:999999", "\x00"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_names_of_this_machine_pass_whatever_it_is_bound_to(host: str) -> None:
    for bound in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.1.5"):
        assert refusal(Hosts(bound), host) == ""


@pytest.mark.parametrize("host", STRANGERS + BROKEN)
def test_other_names_are_refused_whatever_it_is_bound_to(host: str) -> None:
    for bound in ("127.0.0.1", "0.0.0.0", "::", "192.168.1.5", ""):
        assert refusal(Hosts(bound), host, method="GET") == "unknown-host"


def test_addresses_pass_where_the_server_listens_on_them() -> None:
    assert refusal(Hosts("192.168.1.5"), "192.168.1.5:8000") == ""
    assert refusal(Hosts("fe80::1"), "[FE80:0::1]:8000") == ""
    assert refusal(Hosts("box.lan"), "Box.lan:8000") == ""
    for host in ("192.168.1.6", "[2001:db8::1]:8000"):
        assert refusal(Hosts("192.168.1.5"), host) == refusal(Hosts("127.0.0.1"), host) == "unknown-host"
        for all_addresses in ("0.0.0.0", "::", ""):
            assert refusal(Hosts(all_addresses), host) == ""


def test_names_that_are_allowed() -> None:
    hosts = Hosts("127.0.0.1", ["Seg.Example.com", "bücher.example", "10.0.0.7"])
    for host in ("seg.example.com", "seg.example.com:443", "xn--bcher-kva.example", "10.0.0.7:80"):
        assert refusal(hosts, host) == ""
    assert refusal(hosts, "example.com") == refusal(hosts, "other.seg.example.com") == "unknown-host"
    assert refusal(Hosts(allowed=["*"]), "evil.example", "https://evil.example") == ""


def test_pages_of_other_sites_may_look_but_not_send() -> None:
    hosts = Hosts("127.0.0.1", ["seg.example.com"])
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost:3000",
        "http://127.0.0.1:3000",
        "http://[",
        "",
        "x",
    ):
        assert refusal(hosts, "127.0.0.1:8000", origin) == "foreign-origin", origin
        assert refusal(hosts, "127.0.0.1:8000", origin, "GET") == ""
    for host, origin in (
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:80", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("seg.example.com", "https://seg.example.com"),  # TLS ends at a proxy
        ("127.0.0.1:8000", "https://seg.example.com"),  # which says its own name here
    ):
        assert refusal(hosts, host, origin) == "", (host, origin)


def test_a_request_without_these_headers_comes_from_no_browser() -> None:
    assert refusal(Hosts(), None) == refusal(Hosts(), "localhost") == ""
    assert refusal(Hosts(), None, "https://evil.example") == "foreign-origin"


@pytest.mark.parametrize("name", ["http://seg.example.com", "seg.example.com:80", "a/b", "", "*.example.com", "a b"])
def test_what_is_no_name_cannot_be_allowed(name: str) -> None:
    with pytest.raises(LithesegError, match=r"--allow-host .* give one such as seg\.example\.com, without scheme"):
        create_app(service(allow_hosts=(name,)))


def test_loopback() -> None:
    assert all(is_loopback(name) for name in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LocalHost."))
    assert not any(is_loopback(name) for name in ("0.0.0.0", "::", "192.168.1.5", "localhost.evil.example", ""))


def test_every_path_refuses_a_name_that_was_pointed_here() -> None:
    predictor = FakePredictor()
    with client_of(service(predictor)) as client:
        predictor.calls.clear()
        rebound = {"Host": "evil.example:8000"}
        responses = [client.get(path, headers=rebound) for path in ("/", "/v1/model", "/metrics", "/healthz", "/no")]
        for response in [*responses, send(client, headers=rebound)]:
            problem = ProblemDetails.model_validate_json(response.content)
            assert (response.status_code, problem.type) == (421, "urn:litheseg:unknown-host")
            assert "start it with --allow-host evil.example if" in problem.detail  # as the option takes it: no port
        foreign = send(client, headers={"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["type"]) == (403, "urn:litheseg:foreign-origin")
        assert predictor.calls == []
        assert client.get("/", headers={"Origin": "https://evil.example"}).status_code == 200
        assert send(client, headers={"Origin": str(client.base_url).rstrip("/")}).status_code == 200
        text = client.get("/metrics").text
        assert 'litheseg_refused_total{reason="unknown-host"} 6.0' in text
        assert 'litheseg_refused_total{reason="foreign-origin"} 1.0' in text


def test_a_key_does_not_make_up_for_a_name() -> None:
    made = service(api_key="0123456789abcdef")
    with client_of(made) as client:
        key = {"Authorization": "Bearer 0123456789abcdef"}
        assert send(client, headers=key | {"Host": "evil.example"}).status_code == 421
        assert send(client, headers={"Origin": "https://evil.example"}).status_code == 403
        assert send(client).status_code == 401
        assert send(client, headers=key).status_code == 200


def test_a_server_on_all_addresses_answers_to_numbers() -> None:
    made = service()
    with Server(create_app(made, "0.0.0.0"), "0.0.0.0") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/healthz", headers={"Host": "192.168.7.7:8000"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
    made.workers.close()
