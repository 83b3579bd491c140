"""The proof of a foreign graph: the untouched graph, its attention computed again in numpy with ITAE, the rest run on.

The untouched graph gives queries, keys, values and masks; numpy computes logits, artifacts, attenuation and attention
in float64; the untouched graph goes on with that in place of its own. The operated graph must give the same. Without
ITAE, numpy's attention must be the graph's own: so a scale or a mask that was misread fails here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from exporter.foreign.operation import source_of
from exporter.foreign.probe import Array, Arrays, Probe
from exporter.foreign.survey import Measured, Survey, feeds_for
from exporter.methods.itae import in_numpy
from exporter.methods.itae.options import ItaeConfig
from runtime.contract.errors import InputError, ParityError, UsageError

Float64 = npt.NDArray[np.float64]
ROUNDING = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2}
"""The widest limit of a difference, as a share of the largest number where that is above 1."""
NARROWEST = {"float32": 1e-5, "float64": 1e-5, "float16": 4e-3}
"""The narrowest limit, where ITAE does little. Evidence: exporter/DECISIONS.md."""
SHARE = 0.1
"""The limit between these two, as a share of what ITAE does: an attenuation that does nothing is over it."""
MARGINS = {"float32": 1e-5, "float64": 1e-5, "float16": 2e-3}
"""A norm nearer to its threshold, as a share of itself, may fall on either side."""
VISIBLE = (0.5, 0.97)
"""Quantiles of the norms' scores between which a moved threshold lies."""
POOL = 24


@dataclass(frozen=True)
class Replica:
    """The results of the untouched graph with numpy's ITAE, for B images."""

    outputs: Arrays
    flags: npt.NDArray[np.bool_]
    """(B, K, P)."""
    distance: Float64
    """(B, K, P): how far each norm is from its threshold, as a share of itself."""
    norm: Float64
    """(B, K, P); zeros with `positions`."""
    error: float
    """Largest difference of numpy's plain attention to the graph's own, as a share of its largest number."""


@dataclass(frozen=True)
class Proof:
    """One comparison of the operated graph with the replica."""

    threshold: str | None
    """None: the plain model."""
    images: int
    flagged: int
    patches: int
    max_abs: float
    """Largest difference of an output, as a share of its largest number where that is above 1."""
    min_cosine: float
    limit: float
    """The limit that `max_abs` kept: it follows `effect`."""
    effect: float
    """Largest difference that ITAE makes to an output, counted as `max_abs` is."""
    is_telling: bool
    """Whether `effect` is large enough to see an attenuation that is a tenth wrong."""
    margins: tuple[float, ...]
    """Per image: the smallest distance of a norm to its threshold."""


def replicate(one: Survey, probe: Probe, itae: ItaeConfig | None, prefix: int, feeds: Arrays) -> Replica:
    """Run the untouched graph with ITAE by numpy in the chosen layers; None: as it is.

    Raises:
        InputError: ONNX Runtime can't run the graph.
    """
    layers = itae.layer_indices(len(one.backbone)) if itae is not None else ()
    given: Arrays = {}
    found: list[tuple[npt.NDArray[np.bool_], Float64, Float64]] = []
    norms: dict[int, Float64] = {}
    error = 0.0
    for layer in layers:
        assert itae is not None
        source = itae.detects_in(layer)
        if source not in norms:
            norms[source] = _norms(one.backbone[source], probe, itae, (prefix, one.behind), feeds, given)
        measured = one.backbone[layer]
        logits, value, context, own = _attention(measured, probe, feeds, given)
        plain = in_numpy.attend(logits, value)
        error = max(error, float(np.abs(plain - context).max() / max(1.0, np.abs(context).max())))
        norm = norms[source]
        if itae.limit.kind == "positions":
            norm = np.zeros((len(logits), logits.shape[-1] - prefix - one.behind))
        flags, distance = in_numpy.detect(norm, itae)
        found.append((flags, distance, norm))
        changed = in_numpy.attend(in_numpy.attenuate(logits, flags, prefix, itae), value)
        given[measured.site.context.outputs[0].name] = _as_layout(changed, measured, own).astype(own.dtype)
    names = [tensor.name for tensor in one.outputs]
    outputs = probe.run(feeds, names, given)
    batch = len(next(iter(feeds.values())))
    if not found:
        none = np.zeros((batch, 0, 0))
        return Replica(outputs, none.astype(np.bool_), none, none, error)
    flags, distance, norm = (np.stack(part, 1) for part in zip(*found, strict=True))
    return Replica(outputs, flags, distance, norm, error)


def _norms(
    measured: Measured, probe: Probe, itae: ItaeConfig, others: tuple[int, int], feeds: Arrays, given: Arrays
) -> Float64:
    """Norms of the patches, (B, P), in the graph as it has come so far."""
    found = source_of(measured, itae)
    if found is None:
        return np.zeros((0, 0))
    tensor, layout, scale = found
    vectors = probe.run(feeds, [tensor.name], given)[tensor.name].astype(np.float64) / scale
    if "x" in layout or "h" in layout:
        by_head = _by_head(vectors, layout, measured.heads)
    else:
        by_head = vectors.transpose([layout.index(letter) for letter in "bnc"])[:, None]
    return in_numpy.norms(by_head, *others)


def _attention(
    measured: Measured, probe: Probe, feeds: Arrays, given: Arrays
) -> tuple[Float64, Float64, Float64, Array]:
    """Logits, values and the graph's own result, (B, H, N, ·) float64, and the result in the graph's own form."""
    site, heads = measured.site, measured.heads
    context = site.context.outputs[0].name
    free = [*(scale.tensor for scale in site.logit_scales), *site.masks]
    constants = {tensor.name: np.asarray(tensor.values) for tensor in free if isinstance(tensor, gs.Constant)}
    names = [site.query.name, site.key.name, site.value.name, context]
    names += [tensor.name for tensor in free if tensor.name not in constants]
    seen = {**probe.run(feeds, [*dict.fromkeys(names)], given), **constants}
    query, key, value = (
        _by_head(seen[tensor.name].astype(np.float64), layout, heads)
        for tensor, layout in zip((site.query, site.key, site.value), measured.layouts, strict=True)
    )
    logits = query @ key.transpose(0, 1, 3, 2)
    batch = len(logits)
    if site.qk is not None and site.qk.op == "FusedMatMul":
        logits = logits * float(site.qk.attrs.get("alpha", 1.0))

    def spread(name: str) -> Array:
        """A factor or an addend, over (B, H, N, N)."""
        array = seen[name]
        if array.dtype == np.bool_:
            return np.where(array, 0.0, -np.inf)
        wide = array.astype(np.float64)
        return wide.reshape(batch, heads, *wide.shape[1:]) if wide.ndim == 3 and len(wide) == batch * heads else wide

    # The steps stand in the order of the graph: a scale before a mask does not touch it.
    for scale in site.logit_scales:
        logits = logits / spread(scale.tensor.name) if scale.divides else logits * spread(scale.tensor.name)
    for mask in site.masks:
        logits = logits + spread(mask.name)
    own = seen[context]
    layout = _context_layout(measured, own)
    return logits, value, _by_head(own.astype(np.float64), layout, heads), own


def _context_layout(measured: Measured, own: Array) -> str:
    if own.ndim == 3:
        return "bnc" if measured.layouts[0] == "bnc" else "xnd"
    return "bhnd"


def _by_head(array: Float64, layout: str, heads: int) -> Float64:
    """Vectors of any layout as (B, H, N, d)."""
    if layout == "bnc":
        batch, tokens, width = array.shape
        return array.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)
    if "x" in layout:
        moved = array.transpose([layout.index(letter) for letter in "xnd"])
        return moved.reshape(-1, heads, *moved.shape[1:])
    return array.transpose([layout.index(letter) for letter in "bhnd"])


def _as_layout(by_head: Float64, measured: Measured, own: Array) -> Float64:
    """Vectors (B, H, N, d) in the layout of the graph's own result."""
    layout = _context_layout(measured, own)
    moved = by_head.transpose(0, 2, 1, 3) if layout == "bnc" else by_head
    return np.ascontiguousarray(moved).reshape(own.shape)


def images_for(one: Survey, index: int, size: tuple[int, int], batch: int) -> Array:
    """Seeded pictures (B, 3, H, W) as a normalised model sees them: quiet with some loud places, or waves, or noise."""
    rng = np.random.default_rng([20_241_204, index])
    pictures = rng.standard_normal((batch, 3, *size))
    rows, columns = one.grid or (4, 4)
    tall, wide = -(-size[0] // rows), -(-size[1] // columns)
    for number, picture in enumerate(pictures):
        kind = (index + number) % 3
        if kind == 0:
            loud = (rng.random((rows, columns)) < 0.15).repeat(tall, 0).repeat(wide, 1)[: size[0], : size[1]]
            picture *= np.where(loud, 2.0, 0.05)
        elif kind == 1:
            bright = (rng.random((rows, columns)) ** 3).repeat(tall, 0).repeat(wide, 1)[: size[0], : size[1]]
            picture *= bright
        else:
            y, x = np.mgrid[: size[0], : size[1]] / max(size)
            picture[:] = np.sin(9 * np.multiply.outer(rng.random(3), y + 2 * x * rng.random()) + index) * 2
    return pictures


def prove(
    one: Survey,
    probe: Probe,
    itae: ItaeConfig,
    prefix: int,
    run_operated: Callable[[ItaeConfig, Arrays], Arrays],
    pictures: Callable[[int], Array],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Proof], Arrays, Replica]:
    """Compare the operated graph with the replica: as exported; with a threshold that flags some; with none flagged.

    Args:
        one: the survey of the untouched graph.
        probe: of the untouched graph.
        itae: the method.
        prefix: number of tokens before the patches.
        run_operated: the outputs of the graph operated with these options on these inputs.
        pictures: gives B seeded pictures as the graph takes them, by the number of the first.
        progress: called with the progress in words.

    Returns:
        The comparisons; the inputs of the first and its replica, which are the golden sample.

    Raises:
        ParityError: they disagree.
    """
    assert one.image_size is not None
    assert one.picture is not None
    precision = one.picture.dtype if one.picture.dtype in ("float16", "float64") else precision_of(one)
    clear: tuple[Arrays, Replica] | None = None
    best: tuple[float, ItaeConfig, Arrays, Replica] | None = None
    for index in range(0, POOL, 3):
        progress(f"images {index + 1} and following, by numpy")
        noise = pictures(index)
        feeds = feeds_for(one, one.image_size, len(noise), noise)
        own = replicate(one, probe, itae, prefix, feeds)
        if own.error > ROUNDING[precision]:
            raise ParityError(
                f"numpy's attention from the queries, keys and values of {one.backbone[-1].site.name!r} differs from "
                f"the graph's own by {own.error:.3g}: the form was misread, please report it"
            )
        if clear is None and own.distance.min() > MARGINS[precision]:
            clear = feeds, own
        if itae.limit.kind != "positions":
            moved = _moved(own.norm, itae, MARGINS[precision])
            if moved is not None and (best is None or moved[0] > best[0]):
                best = *moved, feeds, own
        is_enough = best is not None and best[0] > 2 * MARGINS[precision]
        if clear is not None and (is_enough or itae.limit.kind == "positions"):
            break
    if clear is None:
        raise ParityError("no image was found whose norms are clear of the threshold: choose another --threshold")
    proofs = [_compare(one, clear[1], run_operated(itae, clear[0]), itae, _plain(one, probe, clear[0]), precision)]
    if best is not None:
        moved_itae, feeds = best[1], best[2]
        progress(f"at --threshold {moved_itae.threshold}")
        again = replicate(one, probe, moved_itae, prefix, feeds)
        plain = _plain(one, probe, feeds)
        proofs.append(_compare(one, again, run_operated(moved_itae, feeds), moved_itae, plain, precision))
        proofs += _at_another_size(one, probe, moved_itae, prefix, run_operated, precision, progress)
    if itae.limit.kind != "positions":
        progress("no patch flagged: plain in, plain out")
        never = dataclasses.replace(itae, threshold="absolute:3e38", side="high")
        _check_bits(_plain(one, probe, clear[0]), run_operated(never, clear[0]))
    return proofs, *clear


def _at_another_size(
    one: Survey,
    probe: Probe,
    itae: ItaeConfig,
    prefix: int,
    run_operated: Callable[[ItaeConfig, Arrays], Arrays],
    precision: str,
    progress: Callable[[str], None],
) -> list[Proof]:
    """The comparison of larger pictures, where height and width are dynamic and the graph does run at two sizes.

    Raises:
        ParityError: they disagree.
    """
    if not one.is_dynamic or one.image_size is None or not one.grid:
        return []
    height, width = one.image_size
    size = (height + height // one.grid[0], width + 2 * (width // one.grid[1]))
    batch = one.fixed_batch or 2
    feeds = feeds_for(one, size, batch, images_for(one, 1, size, batch))
    try:
        plain = _plain(one, probe, feeds)
    except InputError:
        progress("the graph runs at one size alone, though it says otherwise")
        return []
    progress(f"at {size[0]}x{size[1]}")
    own = replicate(one, probe, itae, prefix, feeds)
    if own.distance.min() <= MARGINS[precision]:
        return []
    return [_compare(one, own, run_operated(itae, feeds), itae, plain, precision)]


def _plain(one: Survey, probe: Probe, feeds: Arrays) -> Arrays:
    return probe.run(feeds, [tensor.name for tensor in one.outputs])


def precision_of(one: Survey) -> str:
    """The precision of the graph's attention."""
    return "float16" if any(site.precision == "float16" for site in one.backbone) else "float32"


def _moved(norm: Float64, itae: ItaeConfig, margin: float) -> tuple[float, ItaeConfig] | None:
    """A threshold of the same kind in the widest gap that flags some patches of every image, and how wide it is."""
    batch, layers, patches = norm.shape
    flat = norm.reshape(batch * layers, patches)
    high_side = itae.side != "low"
    scores = _scores(flat, itae, high_side=high_side)
    best: tuple[float, ItaeConfig] | None = None
    every = np.unique(scores)
    low, high = (int(share * (len(every) - 1)) for share in VISIBLE)
    gaps = every[low + 1 : high + 1] - every[low:high]
    for place in np.argsort(-gaps)[:32]:
        number = (every[low + place] + every[low + place + 1]) / 2
        try:
            moved = dataclasses.replace(itae, threshold=f"{itae.limit.kind}:{number:.9g}")
        except UsageError:  # outside the option's domain: a ratio below 1
            continue
        flags, distance = in_numpy.detect(flat, moved)
        mixed = flags.any(axis=1) & ~flags.all(axis=1)
        least = float(distance.min())
        if mixed.mean() >= 0.5 and least > margin and (best is None or least > best[0]):
            best = least, moved
    return best


def _scores(norm: Float64, itae: ItaeConfig, *, high_side: bool) -> Float64:
    """The number that a threshold of this kind would be compared with, for each norm."""
    if itae.limit.kind == "absolute":
        return norm
    if itae.limit.kind == "ratio":
        middle = np.median(norm, axis=1, keepdims=True)
        return norm / np.maximum(middle, 1e-30) if high_side else middle / np.maximum(norm, 1e-30)
    unit = dataclasses.replace(itae, threshold=f"{itae.limit.kind}:1", side="both")
    high, low = in_numpy.bounds(norm, unit)
    z: Float64 = (norm - (high + low) / 2) / np.maximum((high - low) / 2, 1e-30)
    return np.abs(z) if itae.side == "both" else z if high_side else -z


def _compare(one: Survey, replica: Replica, got: Arrays, itae: ItaeConfig, plain: Arrays, precision: str) -> Proof:
    """One comparison.

    Raises:
        ParityError: an output is over its limit, or has another dtype or shape.
    """
    worst, cosine, effect = 0.0, 1.0, 0.0
    for tensor in one.outputs:
        want, have = replica.outputs[tensor.name], got[tensor.name]
        if want.dtype != have.dtype or want.shape != have.shape:
            raise ParityError(
                f"the operated graph gives {tensor.name!r} as {have.dtype} {list(have.shape)}, the untouched one as "
                f"{want.dtype} {list(want.shape)}"
            )
        if want.dtype.kind != "f":
            continue
        a, b = want.astype(np.float64), have.astype(np.float64)
        size = max(1.0, float(np.abs(a).max(initial=0)))
        worst = float(np.maximum(worst, np.abs(a - b).max(initial=0) / size))
        lengths = max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)
        cosine = min(cosine, float((a * b).sum()) / lengths)
        effect = max(effect, float(np.abs(a - plain[tensor.name]).max(initial=0)) / size)
    limit = min(max(SHARE * effect, NARROWEST[precision]), ROUNDING[precision])
    if not worst <= limit:
        raise ParityError(
            f"the operated graph disagrees with the untouched one and ITAE in numpy at --threshold {itae.threshold}: "
            f"by {worst:.3g} of the largest number, limit {limit:g}"
        )
    smallest = replica.distance.min(axis=(1, 2)) if replica.distance.size else np.zeros(0)
    return Proof(
        threshold=itae.threshold, images=len(replica.flags), flagged=int(replica.flags.sum()),
        patches=replica.flags.size, max_abs=worst, min_cosine=cosine, limit=limit, effect=effect,
        is_telling=SHARE * effect >= NARROWEST[precision],
        margins=tuple(float(min(margin, 1e30)) for margin in smallest),
    )  # fmt: skip


def check_close(untouched: Arrays, again: Arrays, one: Survey, what: str) -> float:
    """Compare the untouched graph with what must give the same.

    Args:
        untouched: the outputs of the untouched graph.
        again: those of the other.
        one: the survey of the graph.
        what: the other, for messages.

    Returns:
        The largest difference of an output, as a share of its largest number where that is above 1.

    Raises:
        ParityError: an output has another dtype or shape, or differs by more than rounding.
    """
    limit, worst = ROUNDING[precision_of(one)], 0.0
    for name, want in untouched.items():
        have = again[name]
        if want.dtype != have.dtype or want.shape != have.shape:
            raise ParityError(
                f"{what} gives {name!r} as {have.dtype} {list(have.shape)}, the untouched graph as {want.dtype} "
                f"{list(want.shape)}"
            )
        if np.array_equal(want, have, equal_nan=want.dtype.kind == "f"):
            continue
        size = max(1.0, float(np.abs(want.astype(np.float64)).max(initial=0)))
        off = float(np.abs(want.astype(np.float64) - have).max(initial=0)) / size
        if not off <= limit:
            raise ParityError(f"{what} gives another {name!r} than the graph: by {off:.3g}, limit {limit:g}")
        worst = max(worst, off)
    return worst


def _check_bits(plain: Arrays, got: Arrays) -> None:
    """Compare the outputs where no patch is flagged.

    Raises:
        ParityError: they differ.
    """
    for name, want in plain.items():
        if not np.array_equal(want, got[name], equal_nan=want.dtype.kind == "f"):
            raise ParityError(f"where no patch is flagged, {name!r} is not the untouched graph's: please report it")
