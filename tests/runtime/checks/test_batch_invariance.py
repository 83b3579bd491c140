"""Rows of batches against the same images alone: each way to be wrong is found and named."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from runtime import __main__ as command
from runtime.backends.session import check_batch, check_names, check_outputs
from runtime.checks import verify as module
from runtime.checks.batch_invariance import SAMPLES, check_batches
from runtime.checks.verify import as_json, as_junit, as_text, verify
from runtime.contract.comparison import LIMITS
from runtime.contract.golden import read_golden
from runtime.contract.manifest import ParityLimits, manifest_path, read_manifest

ALL = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
MARGIN = LIMITS["fp32"].flag_margin
SLIGHT = 1e-3
"""Of a fault's effect: a hundred times the limit."""


class FakeSession:
    """A `Session` that gives each image what the tiny model gives it, after `fault` had its way with the batch."""

    name, compute = "fake", "fp32"

    def __init__(self, path, weights, fault=None) -> None:
        self.manifest = read_manifest(path)
        self.golden = read_golden(path, self.manifest)
        self.weights = weights
        self.fault = fault or (lambda outputs, calls: None)
        self.batches: list[np.ndarray] = []

    def run(self, batch, outputs=None):
        check_batch(self.manifest, batch)
        self.batches.append(batch)
        pixels = batch if batch.dtype == np.float32 else (batch / 255).transpose(0, 3, 1, 2)
        computed = self.weights.outputs(pixels)
        self.fault(computed, len(self.batches))
        results = {name: computed[name] for name in check_names(self.manifest, outputs)}
        check_outputs(self.manifest, len(batch), results)
        return results

    def close(self) -> None:
        pass


def neighbours(outputs, _) -> None:
    outputs["embedding"] += SLIGHT * (outputs["embedding"].mean(axis=0) - outputs["embedding"])


def size(outputs, _) -> None:
    if len(outputs["embedding"]) > 2:
        outputs["embedding"] *= 1 + SLIGHT


def row(outputs, _) -> None:
    outputs["embedding"][5:6] *= 1 + SLIGHT


def run(outputs, calls) -> None:
    outputs["embedding"] *= 1 + SLIGHT * calls


def patch_tokens(outputs, _) -> None:
    outputs["patch_tokens"][1:, 4] *= 1 + SLIGHT


def norms(outputs, _) -> None:
    outputs["artifact_norm"][1:, 0, 4] *= 1 + SLIGHT


def flags(outputs, _) -> None:
    outputs["artifact_mask"][1:, 0, 4] ^= True


FAULTS = {
    "neighbours": (neighbours, "depends on its neighbours"),
    "size": (size, "depends on the batch's size"),
    "row": (row, "row 5 of a batch of 8 is not what it is alone, it depends on the row"),
    "run": (run, "depends on the run: two of the same batch differ"),
    "patch tokens": (patch_tokens, "depends on the row: its vectors are 0.001 of their length away"),
    "norms": (norms, "its norms 0.001 of themselves"),
    "flags": (flags, "1 flags differ"),
}


@pytest.fixture
def check(make_model, tmp_path, tiny_weights):
    """Check a `FakeSession` of a model with the given profile; gives the result and the session."""

    def run_it(fault=None, limits=LIMITS["fp32"], golden=None, outputs=ALL, batch=None, dtype="float32"):
        name, builder = ("tiny.onnx", "onnx") if batch is None else ("tiny.engine", "tensorrt")
        path = make_model(tmp_path, name, outputs=outputs, batch=batch, builder=builder, dtype=dtype)
        session = FakeSession(path, tiny_weights, fault)
        return check_batches(session, golden or session.golden, limits), session

    return run_it


# What is run


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (None, (1, 2, 3, 8)),
        ((1, 8, 64), (1, 2, 3, 8, 64)),
        ((4, 4, 4), (4,)),
        ((3, 6, 12), (3, 6, 12)),
        ((4, 8, 64), (4, 5, 8, 64)),
        ((6, 6, 6), (6,)),
        ((1, 1, 2), (1, 2)),
        ((2, 2, 2), (2,)),
    ],
    ids=str,
)
def test_a_good_model_passes_at_every_size_it_takes(check, batch, sizes, dtype) -> None:
    found, session = check(batch=batch, dtype=dtype)
    assert found.failures == ()
    assert found.sizes == sizes
    assert {len(one) for one in session.batches} == set(sizes)
    assert found.rows > 0
    assert found.distance == found.flags_differing == 0


def test_few_images_are_run(check) -> None:
    _, session = check()
    assert sum(map(len, session.batches)) == SAMPLES + 2 + 3 + 8


@pytest.mark.parametrize("batch", [None, (1, 8, 64), (4, 4, 4), (2, 2, 2)], ids=str)
def test_every_row_of_the_largest_batch_holds_a_sample_and_some_other_a_stranger(check, batch) -> None:
    _, session = check(batch=batch)
    known = {image.tobytes() for image in session.golden.input}
    strange = [[image.tobytes() not in known for image in one] for one in session.batches]
    largest = max(map(len, strange))
    assert [False] * largest in strange
    assert any(any(one) and not all(one) for one in strange)


def test_a_model_for_one_image_at_a_time_is_not_compared(check) -> None:
    found, session = check(row, batch=(1, 1, 1))
    assert found.failures == ()
    assert found.rows == 0
    assert session.batches == []


def test_a_golden_sample_of_one_image_is_enough(check, make_model, tmp_path) -> None:
    _, session = check()
    one = dataclasses.replace(
        session.golden,
        **{
            field.name: getattr(session.golden, field.name)[:1]
            for field in dataclasses.fields(session.golden)
            if field.name != "own"
        },
    )
    assert check(golden=one)[0].failures == ()
    for fault in (neighbours, size, row):
        assert check(fault, golden=one)[0].failures


# What is found


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_named(check, fault, message) -> None:
    (failure,) = check(fault)[0].failures
    assert message in failure
    assert re.search(r"sample \d in row \d of a batch of \d", failure)
    assert re.search(r"; \d+ of 11 rows are off", failure)


@pytest.mark.parametrize("batch", [(8, 8, 8), (6, 7, 9), (1, 8, 64)], ids=str)
@pytest.mark.parametrize("fault", ["neighbours", "row"])
def test_a_fault_is_found_and_named_in_an_engine(check, fault, batch) -> None:
    (failure,) = check(FAULTS[fault][0], batch=batch)[0].failures
    assert f"depends on {'its neighbours' if fault == 'neighbours' else 'the row'}" in failure


def test_a_difference_at_the_limit_passes_and_one_above_it_fails(check) -> None:
    found = check(neighbours)[0]
    assert found.distance > 10 * LIMITS["fp32"].batch_distance
    limits = LIMITS["fp32"].model_copy(update={"batch_distance": found.distance})
    assert check(neighbours, limits)[0].failures == ()
    limits = limits.model_copy(update={"batch_distance": np.nextafter(found.distance, 0).item()})
    assert check(neighbours, limits)[0].failures


def test_distance_is_a_share_of_the_vectors_length(check) -> None:
    assert check(size)[0].distance == pytest.approx(SLIGHT, rel=1e-3)


# Flags near their threshold


def near(golden, samples):
    """The golden sample with patch 4 of `samples` inside the margin of its threshold, all other flags far from it."""
    distance = np.ones_like(golden.flag_distance)
    distance[samples, 0, 4] = MARGIN / 2
    return dataclasses.replace(golden, flag_distance=distance)


def flipped(outputs, _) -> None:
    """A flag falls the other way in the first row of batches, and moves the embedding."""
    if len(outputs["embedding"]) == 8:
        outputs["artifact_mask"][0, 0, 4] ^= True
        outputs["embedding"][0] *= 1 + SLIGHT


def test_a_flag_that_flips_inside_the_margin_is_borderline(check) -> None:
    golden = check()[1].golden
    found, _ = check(flipped, golden=near(golden, [0, 1, 2, 3]))
    assert found.failures == ()
    assert found.flags_differing == 1
    assert len(found.borderline) == 1
    assert found.distance == 0


def test_a_flag_that_flips_outside_the_margin_fails(check) -> None:
    golden = check()[1].golden
    assert check(flipped, golden=near(golden, []))[0].failures


def test_more_than_half_of_the_samples_are_never_excused(check) -> None:
    golden = near(check()[1].golden, [0, 1, 2, 3])

    def all_flip(outputs, _) -> None:
        if len(outputs["embedding"]) == 8:
            outputs["artifact_mask"][:, 0, 4] ^= True
            outputs["embedding"] *= 1 + SLIGHT

    found, _ = check(all_flip, golden=golden)
    assert len(found.borderline) == 2
    assert found.failures


def test_vectors_that_differ_without_a_flag_are_not_excused_where_flags_are_seen(check) -> None:
    golden = near(check()[1].golden, [0, 1, 2, 3])
    assert check(row, golden=golden)[0].failures
    assert check(row, golden=golden)[0].borderline == ()


@pytest.mark.parametrize(("unclear", "passes"), [([0, 1, 2, 3], True), ([], False)], ids=["unclear", "clear"])
def test_where_flags_are_unseen_a_sample_near_its_threshold_may_be_off(check, unclear, passes) -> None:
    golden = near(check()[1].golden, unclear)
    found, _ = check(row, golden=golden, outputs=("embedding",))  # row 5 of one batch: one sample
    assert (found.failures == ()) == passes
    assert len(found.borderline) == passes


def test_samples_with_clear_flags_are_used_first(check) -> None:
    golden = check()[1].golden
    twice = dataclasses.replace(
        golden,
        **{
            field.name: np.concatenate([getattr(golden, field.name)] * 2)
            for field in dataclasses.fields(golden)
            if field.name != "own"
        },
    )
    _, session = check(golden=near(twice, [0, 1, 2, 3]), outputs=("embedding",))
    alone = [one[0].tobytes() for one in session.batches if len(one) == 1]
    assert alone == [image.tobytes() for image in golden.input]
    assert len(alone) == SAMPLES


# Limits


@pytest.mark.parametrize("precision", LIMITS)
def test_every_precision_limits_the_distance(precision) -> None:
    limits = LIMITS[precision]
    assert limits.batch_distance is not None
    assert 0 < limits.batch_distance < 0.1


def test_without_a_limit_as_in_an_older_manifest_the_distance_is_told_and_not_held(tiny, use_session) -> None:
    manifest = read_manifest(tiny)
    fields = json.loads(manifest.to_json())
    del fields["parity"]["limits"]["batch_distance"]
    limits = ParityLimits.model_validate_json(json.dumps(fields["parity"]["limits"]))
    parity = manifest.parity.model_copy(update={"limits": limits})
    manifest_path(tiny).write_bytes(manifest.model_copy(update={"parity": parity}).to_json())
    use_session(tiny, row)
    result = verify(tiny)
    assert result.passed
    assert re.search(r"batch distance +\S+ +not limited", as_text(result))


# As `verify` reports it


@pytest.fixture
def use_session(monkeypatch, tiny_weights):
    """Make `verify` open a `FakeSession` with a fault."""

    def use(path, fault=None) -> None:
        monkeypatch.setattr(module, "open_session", lambda *_, **__: FakeSession(path, tiny_weights, fault))

    return use


@pytest.mark.parametrize("fault", ["neighbours", "size", "row"])
def test_verify_exits_1_and_names_the_fault(tiny, use_session, fault, capsys) -> None:
    use_session(tiny, FAULTS[fault][0])
    assert command.main(["verify", str(tiny)]) == 1
    out, err = capsys.readouterr()
    assert FAULTS[fault][1] in err
    assert len(err.splitlines()) == 1
    assert FAULTS[fault][1] in out


def test_verify_reports_what_was_run_and_how_far_it_was_off(tiny, use_session) -> None:
    use_session(tiny, row)  # which the golden sample, run in one batch of 4, doesn't see
    result = verify(tiny)
    assert re.search(r"batches +1,2,3,8 +11 rows compared", as_text(result))
    assert re.search(r"batch distance +0\.001 +limit <= 1e-05", as_text(result))
    report = as_json(result)
    assert report["batches"]["sizes"] == [1, 2, 3, 8]
    assert report["batches"]["distance"] == pytest.approx(SLIGHT, rel=1e-3)
    assert report["failures"] == list(result.batches.failures) != []
    assert report["passed"] is False


def test_junit_tells_parity_and_batches_apart(tiny, use_session) -> None:
    use_session(tiny, row)
    suite = ElementTree.fromstring(as_junit(tiny, verify(tiny))).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "0")
    parity, batches = suite.findall("testcase")
    assert parity.find("failure") is None
    assert "depends on the row" in batches.find("failure").get("message")


def test_verify_of_a_model_for_one_image_at_a_time_says_so(make_model, tmp_path, use_session) -> None:
    path = make_model(tmp_path, "tiny.engine", builder="tensorrt", batch=(1, 1, 1))
    use_session(path)
    result = verify(path)
    assert result.passed
    assert re.search(r"batches +not compared +the model takes one image at a time", as_text(result))
    suite = ElementTree.fromstring(as_junit(path, result)).find("testsuite")
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")
