"""Connections: kept while clients keep them, never cut with a request on its way, and no worker's business."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from tiny_server import FakePredictor, client_of, encoded, picture, send, service

from litheseg.serving import app as app_module
from litheseg.serving import running
from litheseg.serving.app import create_app
from litheseg.serving.running import Server

HEAD = b"POST /v1/segment/mask HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536) or b"\r\n\r\n"
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < lengths[0]:
        body += connection.recv(65536) or b" " * lengths[0]
    return head, body


# ---------------------------------------------------------------- idle connections


def test_connections_idle_longer_than_clients_and_proxies_keep_them() -> None:
    made = service()
    server = Server(create_app(made))
    assert server._server.config.timeout_keep_alive > 60
    server._socket.close()
    made.workers.close()


def test_a_request_is_answered_that_arrives_while_the_connection_is_about_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are due in one turn of the event loop, the closing first: the loop cannot have seen the request."""
    monkeypatch.setattr(running, "_KEEP_ALIVE", 0.1)
    due, arrived = threading.Event(), threading.Event()

    def past_the_deadline() -> None:
        time.sleep(0.2)
        asyncio.get_running_loop().call_soon(busy)

    def busy() -> None:
        due.set()
        arrived.wait(10)

    async def application(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        if not due.is_set():
            asyncio.get_running_loop().call_soon(past_the_deadline)

    with Server(application) as server, connected(server.url) as connection:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request)
        assert answer(connection)[1] == b"ok"
        assert due.wait(10)
        connection.sendall(request)
        arrived.set()
        head, body = answer(connection)
        assert head.startswith(b"HTTP/1.1 200") and body == b"ok"
        assert connection.recv(10) == b"", "idle again, it is closed in the end"


def test_idle_connections_do_not_hold_up_the_end() -> None:
    made = service()
    with Server(create_app(made)) as server, ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(connected(server.url))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(connection)[0].startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        server.__exit__(None, None, None)
        assert time.monotonic() - began < 30
    made.workers.close()


# ---------------------------------------------------------------- refusals while the client still sends


def test_who_asked_first_and_is_refused_has_to_connect_anew() -> None:
    """What it sends next would be taken for the body that it was told not to send."""
    with client_of(service(max_upload=1000)) as client, connected(str(client.base_url)) as connection:
        connection.sendall(HEAD + b"Content-Length: 900000000\r\nExpect: 100-continue\r\n\r\n")
        head, body = answer(connection)
        assert head.startswith(b"HTTP/1.1 413") and b"connection: close" in head.lower() and body.endswith(b"}")
        assert connection.recv(10) == b""


def test_a_refusal_arrives_whole_while_the_client_goes_on_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_LINGER_SECONDS", 0.3)
    with client_of(service(upload_timeout=0.2)) as client:
        for length in (10_000_000, 50_000_000):  # refused as too slow; at once as too large
            with connected(str(client.base_url)) as connection, ThreadPoolExecutor(1) as pool:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + PART)
                stop = threading.Event()

                def trickle(connection: socket.socket = connection, stop: threading.Event = stop) -> None:
                    with suppress(OSError):
                        while not stop.wait(0.005):
                            connection.sendall(bytes(1000))

                pool.submit(trickle)
                head, body = answer(connection)
                stop.set()
                assert head.split()[1] in (b"408", b"413") and b"connection: close" in head.lower()
                assert body.endswith(b"}")
        assert send(client).status_code == 200


def test_a_small_upload_that_is_refused_keeps_its_connection() -> None:
    body = PART + encoded(picture()) + b"\r\n--b--\r\n"
    made = service(api_key="0123456789abcdef")
    with client_of(made) as client, connected(str(client.base_url)) as connection:
        for _ in range(3):
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            head, _ = answer(connection)
            assert head.startswith(b"HTTP/1.1 401") and b"connection: close" not in head.lower()


# ---------------------------------------------------------------- slow bodies


def test_slow_bodies_hold_no_worker() -> None:
    predictor = FakePredictor()
    made = service(predictor, workers=1, queue=1, upload_timeout=20)
    with client_of(made) as client, ExitStack() as stack:
        for _ in range(8):  # four times what workers and queue take
            connection = stack.enter_context(connected(str(client.base_url)))
            connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
        end = time.monotonic() + 30
        while made._receiving < 8 and time.monotonic() < end:
            time.sleep(0.005)
        assert (made._receiving, made.workers.running, made.workers.waiting) == (8, 0, 0)
        assert [send(client).status_code for _ in range(3)] == [200] * 3


def test_bytes_that_drip_do_not_buy_time() -> None:
    with client_of(service(upload_timeout=0.3)) as client, connected(str(client.base_url)) as connection:
        connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
        began, status = time.monotonic(), b""
        connection.settimeout(0.05)
        while not status and time.monotonic() - began < 60:
            connection.sendall(b"x")
            with suppress(TimeoutError):
                status = connection.recv(65536)[:12]
        assert status == b"HTTP/1.1 408" and time.monotonic() - began < 30


def test_a_slow_body_does_not_outlast_the_grace() -> None:
    made = service(upload_timeout=60)
    with Server(create_app(made), grace=1) as server, connected(server.url) as connection:
        connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + PART)
        while not made._receiving:
            time.sleep(0.005)
        made.workers.stop()
        began = time.monotonic()
        server.__exit__(None, None, None)
        assert time.monotonic() - began < 30
    made.workers.close()


def test_many_clients_over_kept_connections_lose_nothing() -> None:
    made = service(workers=2, queue=64)
    with client_of(made) as client, ThreadPoolExecutor(16) as pool:

        def one(number: int) -> set[int]:
            with httpx.Client(base_url=client.base_url, timeout=20) as own:
                return {send(own).status_code for _ in range(5)}

        assert set().union(*pool.map(one, range(16))) == {200}
