"""What is checked is what runs: a file that is swapped after its check never reaches a parser."""

import contextlib
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_gpu import FakeGpu
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rehash import rehash

from runtime.backends import open_session, openvino, ort, trt
from runtime.backends.checked_model import CheckedModel
from runtime.backends.onnx_references import refers_to_other_files
from runtime.contract.errors import BackendError, InputError, ManifestError
from runtime.contract.golden import read_golden
from runtime.contract.manifest import read_manifest, record_file
from runtime.contract.tensorrt import LibraryLog


def swapping(monkeypatch, module, name: str, path, content: bytes) -> None:
    """Let the function `name` of `module`, called between check and parse, put `content` at `path`."""
    real = getattr(module, name)

    def swap(*arguments):
        path.write_bytes(content)
        return real(*arguments)

    monkeypatch.setattr(module, name, swap)


@pytest.mark.parametrize(
    ("provider", "module", "name"),
    [("cpu", ort, "import_onnxruntime"), ("openvino", openvino, "import_openvino")],
    ids=["cpu", "openvino"],
)
@pytest.mark.parametrize("content", [b"rubbish", None], ids=["rubbish", "another model"])
def test_a_model_swapped_between_check_and_parse_does_not_run(
    provider, module, name, content, make_model, tmp_path, monkeypatch
) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino", reason="pip install 'itae[openvino]'")
    path = make_model(tmp_path / "one")
    content = content or make_model(tmp_path / "other", nan=True).read_bytes()
    swapping(monkeypatch, module, name, path, content)
    golden = read_golden(path, read_manifest(path))
    with closing(open_session(path, provider)) as session:
        assert path.read_bytes() == content
        np.testing.assert_allclose(session.run(golden.input)["embedding"], golden.embedding, rtol=0, atol=1e-4)
    with pytest.raises(ManifestError):
        open_session(path, provider)


def test_an_engine_swapped_between_check_and_parse_is_not_parsed(make_model, tmp_path, monkeypatch) -> None:
    path = make_model(tmp_path, "tiny.engine", builder="tensorrt-rtx", batch=(1, 2, 4))
    good, parsed = path.read_bytes(), []

    class Runtime:
        def __init__(self, logger) -> None:
            path.write_bytes(b"evil" * 99)

        def deserialize_cuda_engine(self, content: bytes) -> None:
            parsed.append(content)

    bindings = SimpleNamespace(__version__="1.7", Runtime=Runtime, ILogger=object)
    monkeypatch.setattr(trt, "shared_logger", lambda _: SimpleNamespace(log=LibraryLog(), logger=None))
    model = CheckedModel(path)
    with pytest.raises(BackendError, match=r"can't load .*tiny\.engine"):
        trt.TrtProgram(bindings, model, FakeGpu())
    assert parsed == [good]
    with pytest.raises(AssertionError):  # nobody keeps the bytes
        model.take()


def test_onnx_runtime_does_not_keep_the_bytes_of_a_model(tiny) -> None:
    with closing(open_session(tiny, "cpu")) as session:
        assert session._session._model_bytes is None


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_weights_that_no_manifest_names_are_never_taken_from_the_current_folder(
    provider, make_model, tmp_path, monkeypatch
) -> None:
    path = make_model(tmp_path / "model")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=100)
    rehash(path)
    monkeypatch.chdir(path.parent)
    onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])  # which would take them
    with pytest.raises(ManifestError, match=r"tiny\.onnx keeps weights in another file, which tiny\.onnx\.json does"):
        open_session(path, provider)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_only_a_path_that_a_library_opens_itself_must_be_utf8(provider, make_model, tmp_path) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino", reason="pip install 'itae[openvino]'")
    path = make_model(tmp_path / "\udcff")
    open_session(path, provider).close()
    data = path.with_name("w.data")
    data.write_bytes(b"weights")
    rehash(path, external_data=record_file(data))
    with pytest.raises(InputError, match="no path that is not UTF-8"):
        open_session(path, provider)


# Whether an ONNX file refers to others


def tensor(*, external: bool) -> TensorProto:
    made = numpy_helper.from_array(np.ones(3, np.float32), "w")
    if external:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="w.data")
    return made


def graph(external: bool, place: str) -> onnx.GraphProto:
    """A graph with one tensor, in one of the places where ONNX has them."""
    one = tensor(external=external)
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    if place == "initializer":
        return helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [one])
    if place == "constant":
        return helper.make_graph([helper.make_node("Constant", [], ["y"], value=one)], "g", [], [value])
    if place == "tensors":
        return helper.make_graph([helper.make_node("Odd", [], ["y"], values=[one])], "g", [], [value])
    inner = graph(external, "initializer")
    if place == "subgraph":
        return helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "g", [], [value])
    if place == "subgraphs":
        return helper.make_graph([helper.make_node("Odd", [], ["y"], bodies=[inner])], "g", [], [value])
    sparse = onnx.SparseTensorProto(values=one, dims=[3])
    made = helper.make_graph([], "g", [], [value])
    made.sparse_initializer.append(sparse)
    return made


PLACES = ["initializer", "constant", "tensors", "subgraph", "subgraphs", "sparse", "function", "training"]


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("place", PLACES)
def test_external_weights_are_seen_wherever_onnx_has_tensors(place, external) -> None:
    model = helper.make_model(graph(external and place in PLACES[:6], place if place in PLACES[:6] else "constant"))
    if place == "function":
        nodes = graph(external, "constant").node
        model.functions.append(helper.make_function("d", "F", [], ["y"], nodes, [helper.make_opsetid("", 20)]))
    if place == "training":
        model.training_info.add().algorithm.CopyFrom(graph(external, "initializer"))
    assert refers_to_other_files(model.SerializeToString()) == external


def test_either_mark_of_an_external_tensor_is_enough() -> None:
    model = helper.make_model(graph(external=True, place="initializer"))
    model.graph.initializer[0].ClearField("external_data")
    assert refers_to_other_files(model.SerializeToString())
    model = helper.make_model(graph(external=True, place="initializer"))
    model.graph.initializer[0].ClearField("data_location")
    assert refers_to_other_files(model.SerializeToString())


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_damaged_bytes_are_no_onnx_file_or_are_read_to_their_end(noise, at, byte) -> None:
    good = bytearray(helper.make_model(graph(external=False, place="initializer")).SerializeToString())
    good[at % len(good)] = byte
    for content in (noise, bytes(good), bytes(good[: at % len(good)])):
        with contextlib.suppress(ValueError):  # any other error, or none that ends, fails
            refers_to_other_files(content)


def test_a_file_that_was_cut_is_no_onnx_file() -> None:
    good = helper.make_model(graph(external=False, place="initializer")).SerializeToString()
    with pytest.raises(ValueError, match="no ONNX file, or was cut short"):
        refers_to_other_files(good[:-1])
    with pytest.raises(ValueError, match="no ONNX file"):
        refers_to_other_files(b"not ONNX at all")
