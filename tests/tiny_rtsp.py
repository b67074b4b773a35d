"""A camera that speaks RTSP: MPEG-TS in RTP packets, interleaved in the connection (RFC 2326, 2250, 3550)."""

from __future__ import annotations

import io
import socketserver
import struct
import threading
import time
from contextlib import suppress
from typing import Any

from tiny_video import frame

PACKET, PACKETS = 188, 7  # of MPEG-TS, as many as fit an Ethernet frame
RATE = 25  # frames a second
SDP = "".join(
    f"{line}\r\n"
    for line in (
        "v=0",
        "o=- 0 0 IN IP4 127.0.0.1",
        "s=camera",
        "c=IN IP4 0.0.0.0",
        "t=0 0",
        "m=video 0 RTP/AVP 33",
        "a=control:*",
    )
)


class RtspCamera:
    """Serves rtsp://127.0.0.1:PORT/camera while the context lasts.

    Args:
        counts: frames that it sends in each connection before it hangs up; after the last it answers nobody.
    """

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.camera = self
        self.url = f"rtsp://127.0.0.1:{self._server.server_address[1]}/camera"

    def __enter__(self) -> RtspCamera:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address = True, True
    camera: RtspCamera


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Answer requests until one asks to play; then send the frames in the camera's rhythm, and hang up."""
        counts = self.server.camera.counts
        with suppress(ConnectionError):  # the other side may leave
            while counts and (method := self._answer()):
                if method == "PLAY":
                    self._play(counts.pop(0))
                    return

    def _answer(self) -> str | None:
        lines = []
        while line := self.rfile.readline().decode().strip():
            lines.append(line)
        if not lines:
            return None
        method, address, _ = lines[0].split()
        headers = dict(line.split(": ", 1) for line in lines[1:])
        body = SDP if method == "DESCRIBE" else ""
        own = {
            "OPTIONS": ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"],
            "DESCRIBE": [f"Content-Base: {address}", "Content-Type: application/sdp", f"Content-Length: {len(body)}"],
            "SETUP": ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"],
        }
        answer = ["RTSP/1.0 200 OK", f"CSeq: {headers['CSeq']}", *own.get(method, ["Session: 1"])]
        self.wfile.write(("\r\n".join(answer) + "\r\n\r\n" + body).encode())
        return method

    def _play(self, count: int) -> None:
        for number, chunk in enumerate(_transport_stream(count)):
            size = PACKET * PACKETS
            for start in range(0, len(chunk), size):
                self._send(number, chunk[start : start + size])
            time.sleep(1 / RATE)

    def _send(self, number: int, payload: bytes) -> None:
        self._sequence = getattr(self, "_sequence", -1) + 1
        packet = struct.pack("!BBHII", 0x80, 33, self._sequence & 0xFFFF, number * 90_000 // RATE, 1) + payload
        self.wfile.write(b"$\0" + struct.pack("!H", len(packet)) + packet)


def _transport_stream(count: int) -> list[bytes]:
    """`count` frames as MPEG-TS, cut where each begins."""
    import av

    buffer = io.BytesIO()
    chunks, end = [], 0
    with av.open(buffer, "w", format="mpegts") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"g": "5", "tune": "zerolatency", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
            chunks.append(buffer.getvalue()[end:])
            end = len(buffer.getvalue())
        container.mux(stream.encode())
    chunks.append(buffer.getvalue()[end:])
    return chunks
