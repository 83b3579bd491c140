"""A model beside another on pictures: what is embedded, each way to be off, the limits, and the reports."""

import dataclasses
import json
import math
import types
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from runtime.__main__ import main
from runtime.backends.session import check_batch, check_names
from runtime.checks.against import check_comparable, differences, verify_against
from runtime.checks.against_report import as_json, as_junit, as_text
from runtime.checks.criteria import PRECISIONS, Limits, default_limits
from runtime.contract.errors import BackendError, CheckError, InputError, UsageError
from runtime.contract.manifest import ItaeMethod, NoMethod, manifest_path, read_manifest
from runtime.sources import open_sources

PICTURES = 40
CRITERIA = (
    "max_abs",
    "min_cosine",
    "min_mean_cosine",
    "min_median_cosine",
    "min_neighbours",
    "min_ari",
    "max_batch_distance",
)
PLAIN = {"method": NoMethod()}


class FakeSession:
    """A `Session` that gives each image what the tiny model gives it, after `fault` had its way with the batch."""

    def __init__(self, path, weights, fault=lambda embedding: embedding) -> None:
        self.manifest = read_manifest(path)
        self.weights = weights
        self.fault = fault
        self.name = "fake"
        self.compute = self.manifest.options.precision

    def run(self, batch, outputs=None):
        (got,) = self.stream([batch], outputs)
        if not np.isfinite(got["embedding"]).all():
            raise CheckError("the fake gave NaN or infinity")
        return got

    def stream(self, batches, outputs=None):
        for batch in batches:
            check_batch(self.manifest, batch)
            computed = self.weights.outputs(batch)
            computed["embedding"] = self.fault(computed["embedding"])
            yield {name: computed[name] for name in check_names(self.manifest, outputs)}

    def close(self) -> None:
        pass


def change(path, **options):
    """Give the manifest of a model other options, and perhaps other weights."""
    manifest = read_manifest(path)
    weights = manifest.model.weights
    weights = weights.model_copy(update={"sha256": options.pop("weights_sha256", weights.sha256)})
    backbone = manifest.model.model_copy(update={"weights": weights})
    changed = manifest.options.model_copy(update=options)
    manifest_path(path).write_bytes(manifest.model_copy(update={"options": changed, "model": backbone}).to_json())
    return path


@pytest.fixture
def folder(tmp_path):
    """Forty pictures of a few colours and shapes, so that there are neighbours and clusters."""
    rng = np.random.default_rng(5)
    for number in range(PICTURES):
        low = rng.integers(0, 256, (2 + number % 4, 3, 3)).astype(np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture = Image.fromarray(low).resize((50 + number, 60), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "photos" / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def plain(make_model, tmp_path):
    return change(make_model(tmp_path / "plain", "plain.onnx"), **PLAIN)


@pytest.fixture
def compare(plain, tiny_weights, folder):
    """Compare a model with a fault to the same without, on the forty pictures."""

    def run(fault=lambda embedding: embedding, found=None, **rest):
        model = FakeSession(plain, tiny_weights, fault)
        return verify_against(model, FakeSession(plain, tiny_weights), *(found or pictures_of(folder)), **rest)

    return run


def pictures_of(*arguments):
    """The pictures of files and folders, and how many there are."""
    sources = open_sources([str(argument) for argument in arguments])
    return list(sources.items()), sources.total


def off(result) -> set[str]:
    return {one.key for one in result.criteria if one.failure}


def test_a_model_beside_itself_passes(compare) -> None:
    result = compare()
    assert result.failures == ()
    assert len(result.pictures) == PICTURES
    figures = {one.key: one.figure for one in result.criteria}
    assert tuple(figures) == CRITERIA
    assert figures["max_abs"] == figures["max_batch_distance"] == 0
    assert figures["min_neighbours"] == figures["min_ari"] == 1
    assert all(one.limit is not None and one.skipped is None for one in result.criteria)


def rotated(angle):
    turn = np.eye(6)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return lambda embedding: (embedding @ turn).astype(np.float32)


def test_embeddings_that_are_slightly_rotated_are_off(compare) -> None:
    assert off(compare(rotated(0.01))) == {"max_abs", "min_cosine", "min_mean_cosine", "min_median_cosine"}
    assert off(compare(rotated(1e-6))) == set()


class Swap:
    """Gives two pictures of the first batch each other's embedding."""

    def __init__(self) -> None:
        self.first = True

    def __call__(self, embedding):
        if self.first:
            self.first = False
            embedding[[1, 6]] = embedding[[6, 1]]
        return embedding


def test_swapped_rows_are_off_in_the_neighbours_and_named(compare) -> None:
    result = compare(Swap())
    assert {"min_cosine", "min_neighbours"} <= off(result)
    assert "min_median_cosine" not in off(result)
    assert {picture.rpartition("/")[2] for picture, _ in result.worst()[:2]} == {"01.png", "06.png"}
    assert [cosine for _, cosine in result.worst()] == sorted(result.agreement.cosines)[:3]


def collapsed(embedding):
    return np.ones_like(embedding)


def test_embeddings_that_are_all_one_are_off_in_everything_but_batches(compare) -> None:
    assert off(compare(collapsed)) == {*CRITERIA} - {"max_batch_distance"}


def by_neighbours(embedding):
    return embedding + np.float32(1e-4) * embedding.mean(axis=0)


def test_rows_that_depend_on_their_neighbours_are_off(compare) -> None:
    result = compare(by_neighbours, limits=None)
    assert "max_batch_distance" in off(result)
    assert "it depends on its neighbours" in "; ".join(result.failures)
    assert len(result.batches_of) == 4


@pytest.mark.parametrize("share", ["one", "all"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_off_in_every_figure_that_it_touches(bad, share, compare) -> None:
    def fault(embedding):
        embedding[embedding[:, 0] > (0.9 if share == "one" else -1e9)] = bad
        return embedding

    result = compare(fault)
    assert off(result) >= {*CRITERIA[:-1]}
    assert math.isnan(result.worst()[0][1])
    if share == "all":
        assert result.criteria[-1].skipped
        assert result.criteria[-1].figure is None
    json.dumps(as_json(result), allow_nan=False)
    assert "is no number" in as_text(result)


def test_nan_is_off_without_any_limit(compare) -> None:
    none = Limits(*[None] * len(CRITERIA))
    assert off(compare(rotated(1.0), limits=none)) == set()
    assert off(compare(lambda embedding: embedding * np.nan, limits=none)) == {*CRITERIA[:-1]}


def test_pictures_that_cannot_be_read_are_told_and_left_out(compare, folder) -> None:
    (folder / "00.png").write_bytes(b"")
    (folder / "17.png").write_bytes((folder / "17.png").read_bytes()[:60])
    result = compare()
    assert len(result.pictures) == PICTURES - 2
    assert [one.path for one in result.unreadable] == ["00.png", "17.png"]
    assert result.unreadable[0].error == "is empty (0 bytes)"
    assert result.failures == ()  # rows still belong together
    assert "is empty (0 bytes)" in as_text(result)
    assert [one["path"] for one in as_json(result)["unreadable"]] == ["00.png", "17.png"]


def test_no_readable_picture_is_an_error(compare, folder) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of 40 pictures could be read, the first: .*00.png: is damaged"):
        compare()


@pytest.mark.parametrize("n", [1, 2, 11, 12, 19, 20])
def test_few_pictures_are_told_where_a_figure_says_nothing(n, compare, folder) -> None:
    result = compare(lambda embedding: embedding[::-1], pictures_of(*sorted(folder.iterdir())[:n]))
    neighbours, ari = result.criteria[4:6]
    assert neighbours.name == f"same {min(n - 1, 10)} nearest"
    assert (neighbours.skipped is None) == (n > 11)
    assert (neighbours.failure is None) == (n <= 11)
    assert (ari.skipped is None) == (n >= 20)
    if n <= 11:
        assert f"of {n} pictures" in as_text(result) or "one picture has no neighbour" in as_text(result)


def test_more_clusters_than_pictures_are_refused(compare) -> None:
    with pytest.raises(UsageError, match="--k 41: there are only 40 pictures"):
        compare(clusters=41)


# Two models


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_each_model_gets_pictures_by_its_own_manifest(dtype, make_model, tmp_path, folder) -> None:
    from runtime.backends import open_session

    model = open_session(make_model(tmp_path / "a", dtype="uint8"))
    other = open_session(make_model(tmp_path / "b", dtype=dtype))
    result = verify_against(model, other, *pictures_of(folder))
    assert result.failures == ()
    assert (result.agreement.max_abs > 0) == (dtype == "float32")  # normalised by the graph and by numpy


def test_embeddings_of_two_widths_are_refused(plain, make_model, tmp_path) -> None:
    other = change(make_model(tmp_path / "wide"), pooling="cls+mean")
    with pytest.raises(UsageError, match=r"plain.onnx embeds in 6 numbers, tiny.onnx in 12: .* can't be compared"):
        check_comparable(read_manifest(plain), read_manifest(other))


def test_a_model_without_embedding_is_refused(plain, make_model, tmp_path) -> None:
    other = make_model(tmp_path / "tokens", outputs=("patch_tokens",))
    for pair in ((plain, other), (other, plain)):
        with pytest.raises(UsageError, match="no output `embedding`"):
            check_comparable(*map(read_manifest, pair))


UNLIKE = {
    "ITAE": (PLAIN, "method (itae 0 key absolute:8.0 high min, none)"),
    "pooling": ({"normalize": True}, "normalize (False, True)"),
    "position": ({"pos_embed": "hf"}, "pos_embed (meta, hf)"),
    "weights": ({"weights_sha256": "f" * 64}, "weights_sha256 (000000000000, ffffffffffff)"),
}


@pytest.mark.parametrize(("options", "text"), UNLIKE.values(), ids=UNLIKE)
def test_other_options_are_told(options, text, tiny, make_model, tmp_path) -> None:
    other = change(make_model(tmp_path / "other"), **options)
    assert differences(read_manifest(tiny), read_manifest(other)) == [text]


def test_another_fit_is_named(tiny) -> None:
    manifest = read_manifest(tiny)
    how = manifest.preprocessing.model_copy(update={"fit": "pad", "resize_cover": None})
    other = manifest.model_copy(update={"preprocessing": how})
    assert differences(manifest, other) == ["fit (crop, pad)"]


def test_precision_and_packaging_are_no_difference(tiny, make_model, tmp_path) -> None:
    other = make_model(tmp_path / "other", outputs=("embedding", "patch_tokens"), dtype="uint8")
    change(other, precision="fp16", weights="hf:elsewhere", batch=(1, 2, 4), workspace_mib=9, unfused=True)
    assert differences(read_manifest(tiny), read_manifest(other)) == []


# Limits


def of_precision(base, precision, compute=None):
    """A session of a model in `precision`, which computes in it or in `compute`."""
    manifest = base.model_copy(update={"options": base.options.model_copy(update={"precision": precision})})
    return types.SimpleNamespace(manifest=manifest, compute=compute or precision)


def test_limits_of_an_fp32_file_that_computes_in_bf16_are_those_of_bf16(tiny) -> None:
    base = read_manifest(tiny)
    got = default_limits(of_precision(base, "fp32", "bf16"), of_precision(base, "fp32"))
    assert got == default_limits(of_precision(base, "bf16"), of_precision(base, "fp32"))
    assert got != default_limits(of_precision(base, "fp32"), of_precision(base, "fp32"))


@pytest.mark.parametrize("itae", [False, True])
@pytest.mark.parametrize("one", PRECISIONS)
@pytest.mark.parametrize("two", PRECISIONS)
def test_limits_are_those_of_the_less_precise(one, two, itae, plain, make_model, tmp_path) -> None:
    base = read_manifest(make_model(tmp_path / "base") if itae else plain)
    got = default_limits(of_precision(base, one), of_precision(base, two))
    worse = max(one, two, key=PRECISIONS.index)
    assert dataclasses.replace(got, max_batch_distance=None) == dataclasses.replace(
        default_limits(of_precision(base, worse), of_precision(base, worse)), max_batch_distance=None
    )
    assert got.max_batch_distance == {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 4e-2}[one]  # the model's alone
    assert (got.max_abs is not None) == (worse == "fp32" and not itae)


def test_less_precision_has_looser_limits(plain, tiny) -> None:
    for base in map(read_manifest, (plain, tiny)):
        limits = [default_limits(one, one) for one in (of_precision(base, precision) for precision in PRECISIONS)]
        for key in CRITERIA[2:-1]:
            values = [getattr(one, key) for one in limits]
            assert values == sorted(values, reverse=True)


def test_with_itae_one_picture_whose_flag_fell_the_other_way_passes(make_model, tmp_path, tiny_weights, folder) -> None:
    path = make_model(tmp_path / "itae")
    plain = change(make_model(tmp_path / "plain", "plain.onnx"), **PLAIN)

    class One:
        """Turns the embedding of the first picture by 0.2."""

        done = False

        def __call__(self, embedding):
            if not self.done:
                self.done = True
                embedding[0] = rotated(0.2)(embedding[0])
            return embedding

    for model, failing in ((path, set()), (plain, {"max_abs", "min_cosine", "min_mean_cosine"})):
        sessions = FakeSession(model, tiny_weights, One()), FakeSession(model, tiny_weights)
        assert off(verify_against(*sessions, *pictures_of(folder))) - {"min_neighbours"} == failing


# Reports


def test_json_holds_figures_limits_and_verdicts(compare) -> None:
    report = json.loads(json.dumps(as_json(compare(rotated(0.01))), allow_nan=False))
    assert report["passed"] is False
    assert report["pictures"] == PICTURES
    cosine = report["criteria"]["min_cosine"]
    assert (cosine["limit"], cosine["passed"]) == (0.999999, False)
    assert cosine["figure"] < 0.999999
    assert report["criteria"]["min_neighbours"]["passed"] is True
    assert len(report["worst"]) == 3
    assert (report["neighbours_k"], report["clusters"]) == (10, 4)


def test_table_says_figure_limit_and_verdict(compare) -> None:
    text = as_text(compare())
    for part in ("plain.onnx on fake, beside", "40 pictures", "same 10 nearest", "limit >= 0.995", "k = 4"):
        assert part in text
    assert text.endswith("passed")
    assert "FAILED: max abs" in as_text(compare(rotated(0.1)))


def test_table_names_the_samples_of_batches_that_are_off(compare) -> None:
    assert "sample 0: /" in as_text(compare(by_neighbours))


def test_junit_has_a_test_for_each_criterion(compare, plain, folder) -> None:
    few = pictures_of(*sorted(folder.iterdir())[:5])
    for result, failures, skipped in ((compare(), 0, 0), (compare(rotated(0.01)), 4, 0), (compare(found=few), 0, 2)):
        suite = ElementTree.fromstring(as_junit(plain, result)).find("testsuite")
        assert suite.get("tests") == str(len(CRITERIA))
        assert (suite.get("failures"), suite.get("skipped")) == (str(failures), str(skipped))
        assert [case.get("classname") for case in suite] == [one.name for one in result.criteria]
        assert {case.get("name") for case in suite} == {str(plain)}


@pytest.mark.parametrize(("error", "tag"), [(BackendError("no <GPU>"), "error"), (CheckError("NaN"), "failure")])
def test_junit_tells_what_could_not_be_run(error, tag, plain) -> None:
    suite = ElementTree.fromstring(as_junit(plain, error)).find("testsuite")
    assert [child.tag for child in suite[0]] == [tag]


# The command


@pytest.fixture
def call(capfd):
    def run(*arguments):
        code = main(["verify", *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_command_compares_and_exits_0(call, tiny, plain, folder, tmp_path) -> None:
    report = tmp_path / "report.xml"
    code, out, err = call(tiny, "--against", tiny, "--images", folder, "--junit", report, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["passed"] is True
    assert ElementTree.parse(report).getroot().find("testsuite").get("failures") == "0"


def test_command_that_finds_it_off_exits_1_with_report_and_table(call, tiny, plain, folder, tmp_path) -> None:
    report = tmp_path / "report.xml"
    code, out, err = call(tiny, "--against", plain, "--images", folder, "--junit", report, "--min-cosine", "1.5")
    assert code == 1
    assert err.splitlines()[0].startswith("warning: the models were exported with other options: method (")
    assert err.splitlines()[-1].startswith(f"runtime: {tiny} is off beside {plain}: min cosine")
    assert "FAILED: min cosine" in out
    assert ElementTree.parse(report).getroot().find("testsuite").get("failures") == "1"


def test_what_was_passed_over_and_remarked_on_is_counted(call, tiny, folder) -> None:
    (folder / "notes.txt").write_text("no picture")
    (folder / "clip.mp4").write_bytes(b"a video")
    Image.fromarray(np.full((40, 50), 4000, np.uint16)).save(folder / "twelve.png")
    _, out, _ = call(tiny, "--against", tiny, "--images", folder, "--json")
    report = json.loads(out)
    assert report["skipped"] == {"text": 1, "video": 1}
    assert report["notes"] == {"few_of_16_bits": 1}
    _, out, _ = call(tiny, "--against", tiny, "--images", folder)
    assert "come out dark; --sixteen-bit auto widens them: 1\n" in out


def test_limit_spreads_over_all_pictures(call, tiny, folder) -> None:
    code, out, _ = call(tiny, "--against", tiny, "--images", folder, "--limit", 4, "--json")
    report = json.loads(out)
    assert (code, report["pictures"]) == (0, 4)
    assert [path.rpartition("/")[2] for path in report["batches_of"]] == ["00.png", "10.png", "20.png", "30.png"]


def test_every_limit_can_be_changed(call, tiny, folder) -> None:
    for key in CRITERIA:
        option = f"--{key.replace('_', '-')}"
        code, out, _ = call(tiny, "--against", tiny, "--images", folder, option, -1 if "max" in key else 2, "--json")
        failing = [name for name, one in json.loads(out)["criteria"].items() if one["passed"] is False]
        assert (code, failing) == (1, [key])


@pytest.mark.parametrize("option", ["--max-abs", "--min-cosine", "--max-batch-distance"])
def test_limits_of_the_golden_sample_can_be_changed(option, call, tiny) -> None:
    assert call(tiny)[0] == 0
    code, out, err = call(tiny, option, "-1" if "max" in option else "2")
    assert code == 1
    assert "FAILED" in out
    assert err.startswith(f"runtime: {tiny} failed: ")
    assert call(tiny, option, "1000" if "max" in option else "-1")[0] == 0


BAD_USE = {
    "no pictures": (["{tiny}", "--against", "{tiny}"], "--against needs --images"),
    "pictures alone": (["{tiny}", "--images", "{folder}"], "--images is only for --against OTHER"),
    "a limit of --against": (["{tiny}", "--min-ari", "0.5"], "--min-ari is only for --against OTHER"),
    "k alone": (["{tiny}", "--k", "3"], "--k is only for --against"),
    "k 1": (["{tiny}", "--against", "{tiny}", "--images", "{folder}", "--k", "1"], "--k 1: must be 2 or more"),
    "limit 0": (["{tiny}", "--against", "{tiny}", "--images", "{folder}", "--limit", "0"], "--limit 0: must be 1"),
    "NaN": (["{tiny}", "--max-abs", "nan"], "--max-abs: must be a number, not NaN"),
    "no such folder": (["{tiny}", "--against", "{tiny}", "--images", "nowhere"], "nowhere: No such file"),
    "no such model": (["{tiny}", "--against", "no.onnx", "--images", "{folder}"], "no.onnx: no such model file"),
    "too many clusters": (
        ["{tiny}", "--against", "{tiny}", "--images", "{folder}", "--k", "41"],
        "--k 41: there are only 40 pictures",
    ),
    "report over OTHER": (
        ["{tiny}", "--against", "{plain}", "--images", "{folder}", "--junit", "{plain}.json"],
        "is a file of the model itself",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_USE.values(), ids=BAD_USE)
def test_bad_use_is_one_line_and_exit_2(arguments, message, call, tiny, plain, folder) -> None:
    places = {"tiny": tiny, "plain": plain, "folder": folder}
    code, out, err = call(*[argument.format(**places) for argument in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("runtime: ")
    assert err.count("\n") == 1
    assert message in err


def test_options_of_itae_are_written_in_few_words(tiny, make_model, tmp_path) -> None:
    method = ItaeMethod(layers=(3, 11), source="query", threshold="mad:5", side="both", attenuate="mask")
    other = change(make_model(tmp_path / "other"), method=method)
    (text,) = differences(read_manifest(tiny), read_manifest(other))
    assert text == "method (itae 0 key absolute:8.0 high min, itae 3,11 query mad:5 both mask)"
