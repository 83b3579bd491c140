"""A foreign graph run layer by layer: norms and attention of each, and the graph again from any layer on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime

from exporter.foreign.opening import Prepared
from exporter.foreign.operation import MOST_BYTES, SHARED, places_in, source_of
from exporter.foreign.probe import Array, Arrays
from exporter.foreign.survey import feeds_for
from exporter.methods.itae.graph.anywhere import Patches, attenuate, norms_of
from exporter.methods.itae.options import Choice, ItaeConfig, Source
from exporter.surgery.attention import scope_of
from exporter.surgery.edit import Editor, import_graph
from runtime.contract.errors import InputError, SurgeryError, one_line
from runtime.contract.machine import thread_limit

Float32 = npt.NDArray[np.float32]
SOURCES: tuple[Source, ...] = get_args(Source)
FLAGS = "itae/flags"
"""The input that says which tokens are attenuated."""
_ROWS = "itae/rows"


@dataclass(frozen=True, eq=False)
class Looked:
    """One look at B images: L layers, S sources, P patches."""

    norms: Float32
    """(B, L, S, P); ones where the graph shows no such vectors."""
    attention: Float32
    """(B, L, P): of the CLS token to each patch, mean over heads; without a CLS token, of all tokens."""
    tokens: Mapping[int, Array]
    """The tokens that enter some layers, as the graph has them; empty if they were not found."""
    embedding: Float32
    """(B, C)."""


@dataclass(eq=False)
class Stages:
    """A prepared graph, in parts that ONNX Runtime runs; one session for each way to go on."""

    prepared: Prepared
    _sessions: dict[object, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one = self.prepared.found
        if one.file.bytes > MOST_BYTES:
            raise InputError(f"{one.file.path} has {one.file.bytes} bytes: `calibrate` takes files below 2 GiB")
        self._model = onnx.ModelProto()
        self._model.CopyFrom(one.file.model)
        onnx.load_external_data_for_model(self._model, str(one.file.path.parent))
        self.depth = len(one.backbone)
        self.prefix = self.prepared.prefix
        self.patches = one.backbone[0].tokens - self.prefix - one.behind
        self.goes_on = all(measured.residual_layout for measured in one.backbone)
        """Whether the graph can be run again from a layer's tokens on; else it is run from the pictures on."""

    @property
    def batch(self) -> int | None:
        """The number of pictures that the graph takes; None if any."""
        return self.prepared.found.fixed_batch

    def look(self, pixels: Float32, keep: Sequence[int]) -> Looked:
        """Run the plain graph once; `keep`: layers whose tokens are kept."""
        kept = tuple(keep) if self.goes_on else ()
        session, names = self._session(("look", kept), lambda: self._looking(kept))
        found = dict(zip(names, self._run(session, {}, pixels), strict=True))
        norms = np.ones((len(pixels), self.depth, len(SOURCES), self.patches), np.float32)
        attention = np.zeros((len(pixels), self.depth, self.patches), np.float32)
        for layer in range(self.depth):
            attention[:, layer] = found["rows", layer]
            for place, source in enumerate(SOURCES):
                if (source, layer) in found:
                    norms[:, layer, place] = self._of_patches(found[source, layer])
        return Looked(norms, attention, {layer: found["tokens", layer] for layer in kept}, found["embedding", 0])

    def again(
        self, pixels: Float32, tokens: Array | None, layers: Sequence[int], flags: npt.NDArray[np.bool_], how: Choice,
        until: int | None = None,
    ) -> tuple[Array, list[Float32]]:  # fmt: skip
        """Run the graph on with attenuation, from the tokens of the first of `layers` on, or else from the pictures.

        Args:
            pixels: the pictures.
            tokens: what enters the first of `layers`; None: that is computed.
            layers: where the patches `flags` (B, P) are attenuated.
            flags: the artifacts; an image of nothing else stays as it is.
            how: the attenuation.
            until: a layer whose tokens are wanted; None: the embedding is.

        Returns:
            These tokens or the embedding (B, C), and the attention (B, P) in each of `layers` before `until`.
        """
        start = None if tokens is None else layers[0]
        key = ("again", tuple(layers), str(how), until, start)
        session, names = self._session(key, lambda: self._going_on(layers, how, until, start))
        somewhere = flags & ~flags.all(axis=1, keepdims=True)
        behind = self.prepared.found.behind
        more: Arrays = {FLAGS: np.pad(somewhere, ((0, 0), (self.prefix, behind)))}
        if tokens is not None and start is not None:
            more[str(self.prepared.found.backbone[start].residual)] = tokens
        found = dict(zip(names, self._run(session, more, pixels), strict=True))
        rows = [found["rows", layer] for layer in layers if ("rows", layer) in found]
        return found["tokens" if until is not None else "embedding", until or 0], rows

    def _of_patches(self, by_token: Array) -> Array:
        return by_token[..., self.prefix : self.prefix + self.patches]

    def _session(self, key: object, make: Any) -> tuple[Any, list[tuple[str, int]]]:  # noqa: ANN401
        if key not in self._sessions:
            model, names = make()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = thread_limit() or 0
            try:
                made = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            except Exception as error:  # its exceptions share no base class of their own
                raise SurgeryError(f"a part of the graph can't be run alone: {one_line(error)}") from error
            self._sessions[key] = made, names
        found: tuple[Any, list[tuple[str, int]]] = self._sessions[key]
        return found

    def _run(self, session: Any, more: Arrays, pixels: Float32) -> list[Array]:  # noqa: ANN401
        """The outputs for B pictures; a fixed batch is filled with the last one."""
        one, given = self.prepared.found, len(pixels)
        size = self.batch or given
        assert one.image_size is not None
        axes = {str(measured.residual): 1 for measured in one.backbone if measured.residual_layout == "nbc"}
        filled = {name: _filled(value, size, axes.get(name, 0)) for name, value in more.items()}
        feeds = {**feeds_for(one, one.image_size, size, _filled(pixels, size, 0)), **filled}
        wanted = {item.name for item in session.get_inputs()}
        found = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
        results = []
        for name, value in zip((item.name for item in session.get_outputs()), found, strict=True):
            if name.startswith(_ROWS):  # (B, H, 1, N) or (B·H, 1, N)
                by_head = value.reshape(-1, one.backbone[0].heads, value.shape[-1])
                results.append(self._of_patches(by_head.mean(axis=1))[:given])
            else:
                results.append(value[:, :given] if axes.get(name) else value[:given])
        return results

    def _looking(self, keep: Sequence[int]) -> tuple[onnx.ModelProto, list[tuple[str, int]]]:
        one = self.prepared.found
        graph = import_graph(self._model).toposort()
        outputs: list[tuple[tuple[str, int], gs.Tensor]] = []
        tokens = SHARED if one.is_dynamic else one.backbone[0].tokens
        for source in SOURCES:
            if source == "residual" and not self.goes_on:
                continue
            vectors = {layer: source_of(one.backbone[layer], ItaeConfig(source=source)) for layer in range(self.depth)}
            for place in places_in(one, self.prepared.probe, graph, vectors, ()):
                assert place.vectors is not None
                edit = Editor(graph, f"{source}{place.layer}")
                outputs.append(((source, place.layer), norms_of(edit, place.vectors, place.heads, tokens)))
        outputs += [(("rows", layer), self._rows(graph, layer)) for layer in range(self.depth)]
        tensors = graph.tensors()
        outputs += [(("tokens", layer), tensors[str(one.backbone[layer].residual)]) for layer in keep]
        outputs.append((("embedding", 0), tensors[self.prepared.embedding]))
        return self._cut(graph, outputs)

    def _going_on(
        self, layers: Sequence[int], how: Choice, until: int | None, start: int | None
    ) -> tuple[onnx.ModelProto, list[tuple[str, int]]]:
        one = self.prepared.found
        graph = import_graph(self._model).toposort()
        places = places_in(one, self.prepared.probe, graph, {}, layers)
        tokens = SHARED if one.is_dynamic else one.backbone[0].tokens
        flags = gs.Variable(FLAGS, dtype=np.dtype(np.bool_), shape=[self.batch or "batch", tokens])
        graph.inputs.append(flags)
        which = Patches(self.prefix, one.behind, tokens)
        for layer in layers:
            attenuate(Editor(graph, scope_of(layer)), places[layer], flags, how, which)
        seen = [layer for layer in layers if until is None or layer < until]
        outputs = [(("rows", layer), self._rows(graph, layer)) for layer in seen]
        tensors = graph.tensors()
        if until is None:
            outputs.append((("embedding", 0), tensors[self.prepared.embedding]))
        else:
            outputs.append((("tokens", until), tensors[str(one.backbone[until].residual)]))
        if start is not None:
            entry = tensors[str(one.backbone[start].residual)]
            entry.inputs.clear()
            entry.dtype = self.prepared.probe.dtypes([entry.name])[entry.name]
            entry.shape = ["size0", "size1", "size2"]
            graph.inputs.append(entry)
        return self._cut(graph, outputs)

    def _rows(self, graph: gs.Graph, layer: int) -> gs.Tensor:
        """The attention of the CLS token in a layer, of all heads; without a CLS token, the mean over all tokens."""
        name = str(self.prepared.found.backbone[layer].site.softmax.outputs[0].name)  # type: ignore[union-attr]
        weights = graph.tensors()[name]
        rank = self.prepared.found.backbone[layer].logits_rank
        axis = np.array([rank - 2], np.int64)
        edit = Editor(graph, f"rows{layer}")
        shape = tuple(f"size{number}" for number in range(rank))
        if self.prefix:
            bounds = [np.array([value], np.int64) for value in (0, 1)]
            rows = edit.node("Slice", [weights, *bounds, axis], "cls", dtype=np.float32, shape=shape)
        else:
            rows = edit.node("ReduceMean", [weights, axis], "mean", dtype=np.float32, shape=shape, keepdims=1)
        return edit.node("Cast", [rows], "float32", dtype=np.float32, shape=shape, to=int(onnx.TensorProto.FLOAT))

    def _cut(
        self, graph: gs.Graph, outputs: list[tuple[tuple[str, int], gs.Tensor]]
    ) -> tuple[onnx.ModelProto, list[tuple[str, int]]]:
        """The part of the graph that these outputs need."""
        graph.outputs = [tensor for _, tensor in outputs]
        for tensor in graph.outputs:
            tensor.dtype = np.dtype(np.float32) if tensor.dtype is None else tensor.dtype
        graph.cleanup(remove_unused_graph_inputs=True).toposort()
        model = gs.export_onnx(graph)
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.opset_import[:]
        model.opset_import.extend(self._model.opset_import)
        model.ir_version = self._model.ir_version
        return model, [name for name, _ in outputs]


def _filled(array: Array, size: int, axis: int) -> Array:
    """The array with its last entry repeated along an axis, up to this size."""
    missing = size - array.shape[axis]
    if missing <= 0:
        return array
    return np.concatenate([array, np.repeat(array.take([-1], axis), missing, axis)], axis)
