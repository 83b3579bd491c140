"""The guard before Triton's HTTP port, without Triton."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from scripts.serving import guard
from scripts.serving.guard import MAX_JSON, RefusedError, check_json, parse

LIMIT = 4 << 20


def head(*lines, first="POST /v2/models/tiny/infer HTTP/1.1"):
    return "\r\n".join([first, "Host: x", *lines, "", ""]).encode()


def test_a_plain_request_goes_on():
    binary = parse(
        head("Content-Length: 2000000", "Inference-Header-Content-Length: 90", "Expect: 100-continue"), LIMIT
    )
    assert (binary.body, binary.json, binary.waits) == (2_000_000, 90, True)
    assert b"Expect" not in binary.head
    assert b"\r\nContent-Length: 2000000\r\n" in binary.head
    assert parse(head(first="GET /v2/health/ready HTTP/1.1"), LIMIT).body == 0


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(f"Content-Length: {LIMIT + 1}"), 413),
        (head(f"Content-Length: {MAX_JSON + 1}"), 413),
        (head("Content-Length: 10", "Inference-Header-Content-Length: 11"), 413),
        (head("Content-Length: -1"), 400),
        (head("Content-Length: 1", "Content-Length: 2"), 400),
        (head("Content-Length: 1", "content-length: 1"), 400),
        (head("Content-Length : 1"), 400),
        (head("X: a\nContent-Length: 1"), 400),
        (head("X: a\rContent-Length: 1"), 400),
        (head("X: a", " folded"), 400),
        (head("X: \x00"), 400),
        (head("Transfer-Encoding: chunked"), 411),
        (head("Transfer-Encoding: identity"), 411),
        (head("Content-Encoding: gzip"), 415),
        (head("Content-Encoding: deflate"), 415),
        (head(first="DELETE /v2 HTTP/1.1"), 405),
        (head(first="POST /v2 HTTP/2.0"), 405),
        (head(first="POST http://elsewhere/ HTTP/1.1"), 405),
        (head(first=""), 400),
    ],
)
def test_what_does_not_go_on(request_head, status):
    with pytest.raises(RefusedError) as caught:
        parse(request_head, LIMIT)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 200_000, b'{"a":NaN}', b'{"inputs":[],"inputs":[]}', b'{"inputs":[{"data":[1]}]}', b"\xff"],
    ids=lambda text: text[:12].decode("latin1"),
)
def test_json_that_does_not_go_on(text):
    with pytest.raises(RefusedError):
        check_json(text)


def test_json_without_tensors_goes_on():
    check_json(b'{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":8}}]}')


@pytest.fixture
def quick(monkeypatch):
    """A guard that has little patience."""
    monkeypatch.setattr(guard, "_PATIENCE", 0.3)
    monkeypatch.setattr(guard, "_IDLE", 0.3)


@contextlib.asynccontextmanager
async def guarded(answer: bytes = b"ok", limit: int = LIMIT):
    """A guard before a server that answers every request of no body, or of a MiB, with `answer`; yields its port."""

    async def triton(reader, writer):
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            writer.transport.abort()

    async with await asyncio.start_server(triton, "127.0.0.1", 0) as behind:
        made = guard.Guard(behind.sockets[0].getsockname()[1], limit)
        async with await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=guard.MAX_HEAD) as front:
            yield made, front.sockets[0].getsockname()[1]


GET = head(first="GET /v2/health/ready HTTP/1.1")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "sent", [b"", b"G", GET[:-2], head("Content-Length: 9") + b"{"], ids=["idle", "G", "head", "body"]
)
def test_a_client_that_sends_slowly_loses_its_connection(sent):
    async def go():
        async with guarded() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    asyncio.run(go())


@pytest.mark.usefixtures("quick")
def test_a_client_that_does_not_read_loses_its_connection():
    async def go():
        async with guarded(b"x" * (32 << 20)) as (made, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(GET)
            while not made._open:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(10):
                while made._open:
                    await asyncio.sleep(0.05)
            writer.close()

    asyncio.run(go())


def test_requests_that_are_held_in_memory_are_limited(monkeypatch):
    monkeypatch.setattr(guard, "_HELD", 2)
    large = head(f"Content-Length: {LIMIT}", "Inference-Header-Content-Length: 2")

    async def go():
        async with guarded() as (_, port):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in held:
                writer.write(large)
            await asyncio.sleep(0.2)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(large)
            assert b"503 Service" in await asyncio.wait_for(reader.readline(), 10)
            small_reader, small = await asyncio.open_connection("127.0.0.1", port)
            small.write(GET + GET)
            assert b"200 OK" in await asyncio.wait_for(small_reader.readline(), 10)
            for one in (writer, small, *(other for _, other in held)):
                one.close()

    asyncio.run(go())
