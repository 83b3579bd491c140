"""A real Triton server on the CPU, over HTTP and gRPC."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from rehash import rehash

from runtime import load
from runtime.__main__ import main
from runtime.store import Store
from scripts.serving.running import FREE_PORTS, SERVE, children

http_client = pytest.importorskip("tritonclient.http", reason="needs the extra triton: pip install '.[triton]'")
grpc_client = pytest.importorskip("tritonclient.grpc", reason="needs the extra triton: pip install '.[triton]'")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

TOLERANCE = 1e-5
"""Between an embedding of the server and one of `embed`: both run the same model, in other batches."""
PROTOCOLS = ("http", "grpc")
SIDE = 42


class Client:
    """A client of one protocol."""

    def __init__(self, server, protocol: str) -> None:
        self.module = http_client if protocol == "http" else grpc_client
        self.client = self.module.InferenceServerClient(server.http if protocol == "http" else server.grpc)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def ask(self, model, name, array, dtype, outputs=(), shape=None):
        tensor = self.module.InferInput(name, list(array.shape), dtype)
        tensor.set_data_from_numpy(array)
        if shape is not None:
            tensor.set_shape(shape)
        wanted = [self.module.InferRequestedOutput(output) for output in outputs] or None
        return self.client.infer(model, [tensor], outputs=wanted)

    def embed(self, pictures, model="tiny_images", outputs=("embedding",)):
        return self.ask(model, "image", np.array(pictures, np.object_).reshape(-1, 1), "BYTES", outputs)


@pytest.fixture(params=PROTOCOLS)
def client(request, server):
    with Client(server, request.param) as found:
        yield found


@pytest.fixture
def healthy(server):
    """The server answers after the test as before it."""
    pids = {server.process.pid}
    yield
    with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=30) as answer:
        assert answer.status == 200
    assert pids == {server.process.pid}
    assert server.process.poll() is None


def contents(served):
    return [path.read_bytes() for path in sorted(served.pictures.iterdir())]


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def test_embeddings_and_clusters_are_those_of_the_commands(client, served):
    expected = Store(served.store).load()
    found = client.embed(contents(served), outputs=())
    np.testing.assert_allclose(found.as_numpy("embedding"), expected, rtol=0, atol=TOLERANCE)
    labels = parquet.read_table(served.clusters / "labels.parquet")
    assert [path.rpartition("/")[2] for path in labels["path"].to_pylist()] == sorted(
        path.name for path in served.pictures.iterdir()
    )
    assert found.as_numpy("cluster")[:, 0].tolist() == labels["label"].to_pylist()
    np.testing.assert_allclose(found.as_numpy("distance")[:, 0], labels["distance"].to_numpy(), atol=TOLERANCE)
    one = client.embed(contents(served)[:1], outputs=["cluster"])
    assert one.as_numpy("embedding") is None
    assert one.as_numpy("cluster").tolist() == [[labels["label"][0].as_py()]]


def test_the_model_itself_gives_every_output(client, served):
    with np.load(served.model.with_name("tiny.onnx.parity.npz")) as golden:
        inputs = golden["input"]
    with load(served.model) as model:
        expected = model.run_inputs(inputs)
    found = client.ask("tiny", "images", inputs, "UINT8")
    assert found.as_numpy("artifact_mask").dtype == np.bool_
    for name, array in expected.items():
        np.testing.assert_allclose(found.as_numpy(name), array, rtol=0, atol=TOLERANCE)


def test_a_model_by_openvino_gives_the_embeddings_of_embed(client, served, tmp_path):
    words = [
        "embed",
        str(served.model.with_name("floats.onnx")),
        str(served.pictures),
        "--out",
        str(tmp_path / "store"),
    ]
    assert main([*words, "--provider", "openvino"]) == 0
    found = client.embed(contents(served), "floats_images").as_numpy("embedding")
    np.testing.assert_allclose(found, Store(tmp_path / "store").load(), rtol=0, atol=TOLERANCE)


def bomb():
    """A PNG of 196 megapixels in about 24 kB."""
    sink = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.usefixtures("healthy")
def test_a_bad_picture_is_an_error_that_names_it(client, served):
    good = contents(served)[0]
    cases = {
        b"junk": "damaged, or none of",
        b"": "is empty",
        good[: len(good) // 2]: "can't be decoded",
        contents(served)[1][:200]: "can't be decoded",  # a JPEG
        b"\x00" * 1_000_000: "only zeros",
        b"%PDF-1.7": "image 1: ",
        bomb(): "pixels",
        "text as it comes".encode("utf-16"): "image 1: ",
    }
    for bad, message in cases.items():
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.embed([good, bad])
        assert "image 1: " in str(caught.value)
        assert "Traceback" not in str(caught.value)


@pytest.mark.usefixtures("healthy")
def test_wrong_tensors_are_errors(client):
    one = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    cases = [
        ("tiny", "images", one.astype(np.float32), "FP32", None),  # another dtype
        ("tiny", "images", one[:, :10], "UINT8", None),
        ("tiny", "images", one[0], "UINT8", None),  # without the batch
        ("tiny", "images", one[:0], "UINT8", None),  # no image
        ("tiny", "images", np.repeat(one, 33, axis=0), "UINT8", None),  # more than --max-batch
        ("tiny", "images", one, "UINT8", [32, SIDE, SIDE, 3]),  # a shape of more than comes
        ("tiny", "images", one, "UINT8", [2**62, SIDE, SIDE, 3]),
        ("tiny", "images", one, "UINT8", [-1, SIDE, SIDE, 3]),
        ("tiny", "pixels", one, "UINT8", None),  # no such input
        ("tiny_images", "image", np.array([[b"x"]], np.object_), "BYTES", [2**31, 1]),
        ("tiny_images", "image", np.array([[b"x"]], np.object_), "BYTES", [4, 1]),
        ("tiny_images", "image", np.empty((0, 1), np.object_), "BYTES", None),
        ("tiny_images", "image", np.full((10_000, 1), b"x", np.object_), "BYTES", None),
        ("tiny_images", "image", np.full((1, 1), b"x", np.object_), "BYTES", [-1, 1]),
        ("tiny_images", "image", one, "UINT8", None),
        ("floats", "pixel_values", np.full((1, 3, SIDE, SIDE), np.nan, np.float32), "FP32", None),
        ("nobody", "image", one, "UINT8", None),
    ]
    for model, name, array, dtype, shape in cases:
        with pytest.raises(InferenceServerException):
            client.ask(model, name, array, dtype, shape=shape)
    with pytest.raises(InferenceServerException):
        client.ask("tiny", "images", one, "UINT8", ["nothing"])


def post(server, path, body, headers=()):
    connection = http.client.HTTPConnection(server.http, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.usefixtures("healthy")
def test_hostile_requests_are_refused(server):
    shape = b'{"inputs":[{"name":"images","shape":[99999999999,42,42,3],"datatype":"UINT8","data":[1]}]}'
    nested = b'{"inputs":' + b"[" * 300_000
    binary = b'{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":8}}]}'
    length = {"Inference-Header-Content-Length": str(len(binary))}
    cases = [
        ("/v2/models/tiny/infer", shape, {}, 400),
        ("/v2/models/tiny/infer", nested, {}, 400),
        ("/v2/models/tiny/infer", b"not JSON", {}, 400),
        ("/v2/models/tiny/infer", b"{}", {"Content-Encoding": "gzip"}, 415),
        ("/v2/models/tiny/infer", iter([b"{}"]), {}, 411),  # in chunks
        ("/v2/models/tiny/infer", b"{}", {"Content-Length": str(1 << 40)}, 413),
        ("/v2/models/tiny_images/infer", binary, {**length, "Content-Length": "5"}, 413),  # JSON of more than the body
        ("/v2/models/tiny_images/infer", binary + b"\xff\xff\xff\xff1234", length, None),
        ("/v2/models/tiny_images/infer", binary + b"\x02\x00\x00\x001234", length, None),
        ("/v2/models/tiny_images/infer", binary + b"\x04\x00\x00\x00", length, None),
        ("/v2/repository/models/tiny/unload", b"", {}, 403),
        ("/v2/systemsharedmemory/region/x/register", b"{}", {}, 403),
        ("/v2/logging", b"{}", {}, 403),
    ]
    for path, body, headers, status in cases:
        found, text = post(server, path, body, headers)
        assert found >= 400, (path, body if isinstance(body, bytes) else "")
        assert "error" in json.loads(text)
        assert status in (None, found), (path, text)


def test_64_clients_at_once_lose_no_request(server, served):
    pictures = contents(served)
    expected = Store(served.store).load()

    def one(number):
        rng = np.random.default_rng(number)
        with Client(server, PROTOCOLS[number % 2]) as client:
            for _ in range(4):
                chosen = rng.integers(0, len(pictures), rng.integers(1, 6))
                if rng.random() < 0.2:  # a bad one among those that share its batch
                    with pytest.raises(InferenceServerException, match="image 0: "):
                        client.embed([b"bad", *(pictures[index] for index in chosen)])
                found = client.embed([pictures[index] for index in chosen]).as_numpy("embedding")
                np.testing.assert_allclose(found, expected[chosen], rtol=0, atol=TOLERANCE)
        return number

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        assert sorted(pool.map(one, range(64))) == list(range(64))


def test_a_new_version_under_load_loses_no_request_and_mixes_nothing(server, served, make_model, tmp_path):
    """Version 2 has embeddings of the opposite sign and clusters in the other order."""
    centroids = np.load(served.clusters / "centroids.npy")
    expected = Store(served.store).load()

    def publish(name, factor, sign):
        model = make_model(tmp_path / name, dtype="uint8", factor=factor)
        np.save(tmp_path / name / "c.npy", (centroids[::-1] if sign < 0 else centroids) * np.float32(sign))
        words = ["triton", model, "--out", served.folder, "--name", "moving", "--centroids", tmp_path / name / "c.npy"]
        assert main([*map(str, words)]) == 0

    publish("one", 1, 1)
    pictures = contents(served)
    answers: collections.Counter[tuple[str, int, int]] = collections.Counter()
    over = threading.Event()

    def hammer(number):
        with Client(server, PROTOCOLS[number % 2]) as client:
            row = number % len(pictures)
            while not over.is_set():
                found = client.embed(pictures[row : row + 1], "moving_images", ())
                vector, cluster = found.as_numpy("embedding")[0], int(found.as_numpy("cluster")[0, 0])
                near = [np.abs(vector - sign * expected[row]).max() < TOLERANCE for sign in (1, -1)]
                assert sum(near) == 1
                response = found.get_response()
                version = response["model_version"] if isinstance(response, dict) else response.model_version
                answers[version, 1 if near[0] else -1, cluster - 0 if near[0] else 2 - cluster] += 1

    until(lambda: is_ready(server, "moving_images"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(hammer, number) for number in range(8)]
        try:
            until(lambda: sum(answers.values()) > 50)
            publish("two", -1, -1)
            until(lambda: sum(count for (version, *_), count in answers.items() if version == "2") > 50)
        finally:
            over.set()
        for one in running:
            one.result()
    labels = parquet.read_table(served.clusters / "labels.parquet")["label"].to_pylist()[:8]
    assert {(version, sign) for version, sign, _ in answers} == {("1", 1), ("2", -1)}
    assert {cluster for *_, cluster in answers} == set(labels)


def test_a_version_whose_golden_sample_is_off_is_not_served(server, served, make_model, tmp_path):
    for number in (1, 2):
        model = make_model(tmp_path / str(number), factor=number)
        if number == 2:  # another model than the one that its golden sample is of, with a manifest that fits
            shutil.copy(tmp_path / "1" / model.name, model)
            rehash(model)
        assert main(["triton", str(model), "--out", str(served.folder), "--name", "golden"]) == 0
        if number == 1:
            until(lambda: is_ready(server, "golden"))
    until(lambda: "failed to load 'golden' version 2: Internal: CheckError: " in server.log.read_text())
    assert "the golden sample is off: max abs" in server.log.read_text()
    inputs = np.zeros((1, 3, SIDE, SIDE), np.float32)
    with Client(server, "http") as client:
        assert client.ask("golden", "pixel_values", inputs, "FP32").get_response()["model_version"] == "1"
    shutil.rmtree(served.folder / "golden" / "2")  # so that the server is ready again for other tests


def until(reached, seconds=60):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_ready(server, model):
    with Client(server, "grpc") as client:
        return client.client.is_model_ready(model)


def test_a_models_process_that_dies_comes_back(server, served):
    """Triton itself goes on without it, and says that it is ready."""
    for pid in children(server.process.pid):
        if "triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)

    def answers():
        with contextlib.suppress(InferenceServerException, OSError), Client(server, "http") as client:
            return len(client.embed(contents(served)).as_numpy("embedding")) == 12

    until(answers, 90)
    assert "the process of a model died: Triton is started again" in server.log.read_text()


def test_health_and_metrics_answer(server, served):
    with Client(server, "http") as client:
        assert client.client.is_server_live()
        before = successes(server)
        client.embed(contents(served)[:1])
        assert successes(server) == before + 1
        metadata = client.client.get_model_metadata("tiny_images")
    assert [one["name"] for one in metadata["outputs"]] == ["embedding", "cluster", "distance"]


def successes(server):
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith('nv_inference_request_success{model="tiny_images"')]
    return int(line.rpartition(" ")[2])


def test_only_loopback_listens(server):
    for place in (server.http, server.grpc, server.metrics):
        port = int(place.rpartition(":")[2])
        found = set()
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            places = [row[1].split(":") for row in rows if row[3] == "0A"]  # those that listen
            found |= {address for address, number in places if int(number, 16) == port}
        assert found
        assert found <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the Python of Triton is another one then")
@pytest.mark.usefixtures("installed")
def test_numpy_2_is_refused_when_the_model_is_loaded(served, tmp_path):
    """Its outputs would be empty, without an error."""
    shutil.copytree(served.folder / "floats", tmp_path / "repository" / "floats")
    program = tmp_path / "repository" / "floats" / "1" / "model.py"
    here = str(Path(np.__file__).parents[1])
    program.write_text(f"import sys\nsys.path.insert(0, {here!r})\n{program.read_text()}")
    done = subprocess.run(
        [SERVE, tmp_path / "repository", *FREE_PORTS],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"does not work with numpy {np.__version__}" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("serve: Triton ")
    assert done.stdout == ""
