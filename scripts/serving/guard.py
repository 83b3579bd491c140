"""A guard before Triton's HTTP port, which lets whole, plain requests of limited size through, one at a time.

Triton 2.51, the one that PyPI has, holds a request of any size in memory and unpacks compressed ones without a limit.
JSON that is nested deeply, and tensors in JSON whose shape is not that of their data, end its whole process. So the
guard reads a request to its end, checks it, and only then passes it on. Tensors come in binary form, as `tritonclient`
sends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.contract.hashed_json import parse_strictly

MAX_HEAD = 64 << 10
"""Bytes of a request's first line and headers."""
MAX_JSON = 1 << 20
"""Bytes of a request's JSON; what follows it is binary."""
MAX_CONNECTIONS = 512
_REASONS = {
    400: "Bad Request",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
_PATIENCE = 60.0
"""Seconds within which a request that has begun must be complete, and a client must take some of an answer."""
_IDLE = 600.0
"""Seconds for which a connection may be open without a request."""
_HELD = 16
"""Largest requests that may be in memory at a time."""
_HEADER = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?[ \t]*")
_LINE = re.compile(rb"(GET|POST) (/[\x21-\x7e]*) HTTP/1\.[01]")
_NUMBER = re.compile(rb"[0-9]{1,15}")


class RefusedError(Exception):
    """A request that does not reach Triton, with its status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Request:
    """The checked head of a request."""

    head: bytes
    """As it goes on to Triton."""
    body: int
    """Bytes of the body."""
    json: int | None
    """Bytes of its JSON; None if all of it is."""
    waits: bool
    """Whether the client waits for a word before it sends the body."""


def parse(head: bytes, max_body: int) -> Request:
    """Check the head of a request, up to the empty line.

    Raises:
        RefusedError: it is no request that we let through.
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if not _LINE.fullmatch(first):
        raise RefusedError(405 if re.match(rb"[A-Z]+ ", first) else 400, "only GET and POST by HTTP/1.1 are served")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in headers:
            raise RefusedError(400, "a header is malformed, or comes twice")
        headers[found[1].lower()] = found[2] or b""
    if b"transfer-encoding" in headers:
        raise RefusedError(411, "send the whole body with Content-Length, not in chunks")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusedError(415, "compressed requests are not served: send it as it is")
    body = _number(headers, b"content-length") or 0
    if body > max_body:
        raise RefusedError(413, f"a request of {body:,} bytes: at most {max_body:,} are served")
    json = _number(headers, b"inference-header-content-length")
    if (body if json is None else json) > min(body, MAX_JSON):
        raise RefusedError(413, f"JSON of more than {MAX_JSON:,} bytes, or than the body: send tensors in binary form")
    waits = headers.get(b"expect", b"").lower() == b"100-continue"
    kept = [line for line in lines if not line.lower().startswith((b"expect:", b"connection:"))]
    return Request(b"\r\n".join([first, *kept, b"Connection: keep-alive", b"", b""]), body, json, waits)


def _number(headers: dict[bytes, bytes], name: bytes) -> int | None:
    if name not in headers:
        return None
    if not _NUMBER.fullmatch(headers[name]):
        raise RefusedError(400, f"{name.decode()} is no number")
    return int(headers[name])


def check_json(text: bytes) -> None:
    """Check the JSON of a request, as far as it could harm the server.

    Raises:
        RefusedError: it is not JSON, is nested too deeply, or holds tensors.
    """
    try:
        fields = parse_strictly(text)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else "is damaged"
        raise RefusedError(400, f"the JSON of the request {reason}") from error
    inputs = fields.get("inputs") if isinstance(fields, dict) else None
    if any(isinstance(one, dict) and "data" in one for one in (inputs if isinstance(inputs, list) else ())):
        raise RefusedError(400, "tensors in JSON are not served: send them in binary form, as tritonclient does")


class Guard:
    """Passes requests on to a port of this machine."""

    def __init__(self, port: int, max_body: int) -> None:
        self._port, self._max_body = port, max_body
        self._open = self._held = 0

    def _check_room(self) -> None:
        if self._open > MAX_CONNECTIONS:
            raise RefusedError(503, "too many connections")

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Room in memory for the body of a request; raises RefusedError."""
        if self._held + size > _HELD * self._max_body:
            raise RefusedError(503, "too many large requests at once: try again")
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client's connection until it ends, or sends what is refused."""
        self._open += 1
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                self._check_room()
                try:
                    async with asyncio.timeout(_IDLE):
                        first = await reader.readexactly(1)
                    async with asyncio.timeout(_PATIENCE):
                        head = first + await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    return
                except asyncio.LimitOverrunError as error:
                    raise RefusedError(413, f"headers of more than {MAX_HEAD:,} bytes") from error
                request = parse(head, self._max_body)
                if request.waits:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                with self._room(request.body):
                    async with asyncio.timeout(_PATIENCE):
                        body = await reader.readexactly(request.body)
                    if body:
                        check_json(body if request.json is None else body[: request.json])
                    with _from_triton():
                        upstream = upstream or await asyncio.open_connection("127.0.0.1", self._port)
                        upstream[1].write(request.head)
                        upstream[1].write(body)
                        del body
                        await upstream[1].drain()
                with _from_triton():
                    goes_on = await _relay(upstream[0], writer)
                if not goes_on:
                    return
        except RefusedError as refused:
            await _refuse(reader, writer, refused)
        except _StoppedReadingError:
            writer.transport.abort()  # close would wait for it
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or is too slow; or the server is being stopped
        finally:
            self._open -= 1
            for one in (writer, *(upstream[1:] if upstream else ())):
                one.close()


class _StoppedReadingError(Exception):
    """A client does not take its answer."""


@contextlib.contextmanager
def _from_triton() -> Iterator[None]:
    try:
        yield
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise RefusedError(502, "the server gave no answer") from error


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Wait until a client has taken most of what was written; raises _StoppedReadingError."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await writer.drain()
    except TimeoutError as error:
        raise _StoppedReadingError from error


async def _relay(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Pass on a response; returns whether the connection goes on after it."""
    head = await source.readuntil(b"\r\n\r\n")
    writer.write(head)
    status = int(head.split(b" ", 2)[1])
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]+)", head, re.IGNORECASE)
    if length is None and status not in (204, 304):  # it ends where Triton ends it
        while chunk := await source.read(1 << 16):
            writer.write(chunk)
            await _taken(writer)
        return False
    left = int(length[1]) if length else 0
    while left:
        chunk = await source.read(min(left, 1 << 20))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(chunk)
        writer.write(chunk)
        await _taken(writer)
    await _taken(writer)
    return True


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: RefusedError) -> None:
    """Answer with the reason and end the connection."""
    text = f'{{"error":"{refused}"}}'.encode()
    head = f"HTTP/1.1 {refused.status} {_REASONS[refused.status]}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text)
    with contextlib.suppress(OSError, TimeoutError, _StoppedReadingError):
        await _taken(writer)
        writer.write_eof()
        async with asyncio.timeout(2):  # a client reads the answer only once it has sent; what it sends is thrown away
            while await reader.read(1 << 20):
                pass
