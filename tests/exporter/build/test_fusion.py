"""Which attentions are one kernel, and the reasons that are reported for the others."""

from __future__ import annotations

import dataclasses
import re

import pytest

from exporter.build.build_log import Kernel
from exporter.build.fusion import count_int8, describe, read_fusion, require, require_none, unfusable_layers
from exporter.methods.itae.options import ItaeConfig
from exporter.options import ExportSpec
from runtime.contract.errors import FusionError, one_line

SITES = [frozenset({f"qk{i}", f"softmax{i}", f"context{i}"}) for i in range(4)]


def whole(layer: int) -> Kernel:
    """A kernel that holds the attention of a layer, and a Cast."""
    return Kernel(f"_gemm_mha_{layer}", SITES[layer] | {f"cast{layer}"})


def pieces(layer: int) -> list[Kernel]:
    """The same in three kernels, of which the second makes a part of the last MatMul."""
    return [
        Kernel(f"gemm_{layer}", frozenset({f"qk{layer}"})),
        Kernel(f"softmax_{layer}", frozenset({f"qk{layer}", f"softmax{layer}"})),
        Kernel(f"gemm_b_{layer}", frozenset({f"context{layer}"})),
    ]


def engine(*unfused: int) -> list[Kernel]:
    """The kernels of an engine of four layers, some of which are in pieces."""
    kernels = [Kernel("patches", frozenset({"conv"}))]
    for layer in range(4):
        kernels += pieces(layer) if layer in unfused else [whole(layer)]
    return [*kernels, Kernel("norm", frozenset({"norm"}))]


@pytest.mark.parametrize(
    ("precision", "itae", "unfusable"),
    [
        pytest.param("fp16", None, (), id="fp16 plain"),
        pytest.param("fp16", ItaeConfig("all", attenuate="mask"), (), id="fp16 mask"),
        pytest.param("fp16", ItaeConfig("all", attenuate="mean"), (), id="fp16 mean"),
        pytest.param("fp16", ItaeConfig("all", attenuate="scale:0.5"), (), id="fp16 scale"),
        pytest.param("fp16", ItaeConfig("0,3-5", attenuate="min"), (), id="fp16 min"),
        pytest.param("fp32", None, tuple(range(12)), id="fp32 plain"),
        pytest.param("fp32", ItaeConfig("last"), tuple(range(12)), id="fp32 min"),
    ],
)
def test_the_options_tell_which_attentions_can_be_one_kernel(precision, itae, unfusable):
    spec = ExportSpec("a.engine", size="vits14", precision=precision, itae=itae)
    assert tuple(unfusable_layers(spec)) == unfusable
    assert unfusable_layers(dataclasses.replace(spec, unfused=True)) == dict.fromkeys(range(12), "unfused")


def test_products_in_int8_kernels_are_counted():
    kernels = [
        Kernel("q+k", frozenset({"q", "k"}), takes_int8=True),
        Kernel("v", frozenset({"v"}), takes_int8=False),
        Kernel("q_bias", frozenset({"q", "add"}), takes_int8=False),
    ]
    assert count_int8(["q", "k", "v", "other"], kernels) == 2
    assert count_int8(["q"], [Kernel("q", frozenset({"q"}))]) is None


def test_an_attention_is_fused_where_one_kernel_computes_all_of_it():
    found = read_fusion(SITES, engine(1, 3), {3: "precision"})
    assert found is not None
    assert (found.sites, found.expected, found.fused, found.engine_kernels) == (4, 3, 2, 10)
    assert found.unfused_layers == (1, 3)
    assert found.reasons == (None, "precision")
    assert found.kernels == (
        ("_gemm_mha_0",), ("gemm_1", "softmax_1", "gemm_b_1"), ("_gemm_mha_2",), ("gemm_3", "softmax_3", "gemm_b_3"),
    )  # fmt: skip


def test_a_kernel_that_lacks_one_of_the_three_nodes_is_not_the_attention():
    for node in SITES[0]:
        kernels = [Kernel("_gemm_mha_v2", SITES[0] - {node}), Kernel("other", frozenset({node}))]
        found = read_fusion(SITES[:1], kernels, {})
        assert found is not None
        assert found.fused == 0


def test_layers_that_the_outputs_do_not_need_are_not_counted():
    found = read_fusion(SITES[:2], engine(), dict.fromkeys(range(4), "why"))
    assert found is not None
    assert (found.sites, found.expected, found.fused) == (2, 0, 2)


BY_PRECISION = "TensorRT fuses attention over all queries in fp16 and bf16 only"


@pytest.mark.parametrize(
    ("unfused", "unfusable", "text"),
    [
        pytest.param((), {}, "attention fused: 4 of 4; 6 kernels in all", id="all"),
        pytest.param(
            (3,),
            {3: "precision"},
            f"attention fused: 3 of 4; not layer 3: {BY_PRECISION}; 8 kernels in all",
            id="all that can be",
        ),
        pytest.param(
            (0, 1, 3),
            {3: "precision"},
            "attention fused: 1 of 4; not layers 0-1: the builder chose otherwise; not layer 3: "
            f"{BY_PRECISION}; 12 kernels in all",
            id="less",
        ),
        pytest.param(
            (0, 1, 2, 3),
            dict.fromkeys(range(4), "precision"),
            f"attention fused: 0 of 4; not layers 0-3: {BY_PRECISION}; 14 kernels in all",
            id="none can be",
        ),
        pytest.param(
            (0, 1, 2, 3),
            dict.fromkeys(range(4), "unfused"),
            "attention fused: 0 of 4; not layers 0-3: --unfused was given; 14 kernels in all",
            id="none may be",
        ),
    ],
)
def test_the_summary_says_which_layers_are_not_and_why(unfused, unfusable, text):
    assert describe(read_fusion(SITES, engine(*unfused), unfusable)) == text


def test_a_builder_that_names_no_kernels_leaves_fusion_unknown():
    assert read_fusion(SITES, [], {}) is None
    assert describe(None) == "not known: the builder names no kernels"
    with pytest.raises(FusionError, match="names no kernels"):
        require(None)


@pytest.mark.parametrize("unfused", [(), (1, 3)])
def test_what_the_options_keep_from_being_fused_is_not_required(unfused):
    require(read_fusion(SITES, engine(*unfused), {1: "precision", 3: "precision"}))


def test_less_than_the_options_allow_is_an_error_that_names_layers_and_kernels():
    words = (
        "not fused in layers 0,2-3, where the options allow it (1 of 4 are); layer 0 became gemm_0, softmax_0, gemm_b_0"
    )
    with pytest.raises(FusionError, match=re.escape(words)) as caught:
        require(read_fusion(SITES, engine(0, 2, 3), {1: "precision"}))
    assert caught.value.exit_code == 1
    assert one_line(caught.value) == str(caught.value)
    assert "leave --require-fusion out" in str(caught.value)


def test_an_attention_that_is_fused_all_the_same_is_an_error_that_names_layers_and_kernels():
    words = (
        "--unfused: the builder made one kernel of the attention in layers 0,2 all the same (_gemm_mha_0 in layer 0)"
    )
    with pytest.raises(FusionError, match=re.escape(words)) as caught:
        require_none(read_fusion(SITES, engine(1, 3), dict.fromkeys(range(4), "unfused")))
    assert caught.value.exit_code == 1
    assert one_line(caught.value) == str(caught.value)
    require_none(read_fusion(SITES, engine(0, 1, 2, 3), dict.fromkeys(range(4), "unfused")))
    require_none(None)
