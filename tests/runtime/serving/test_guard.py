"""The guard before Triton's HTTP port, without Triton."""

from __future__ import annotations

import pytest

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
