"""The checks of a target, the most valuable first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_checks import models, others, torch_alone
from scripts.gpu_checks.check import Check, Figures, Skipped
from scripts.gpu_checks.child import Child
from scripts.gpu_checks.machine import PRECISIONS, Road, Target, builds_rtx_here
from scripts.gpu_checks.models import Case


@dataclass(frozen=True)
class Places:
    """Where a run works and writes."""

    out: Path
    models: Path
    log: Path


def make_plan(
    target: Target,
    places: Places,
    child: Child,
    found: dict[str, Any],
    *,
    may_install: bool,
    study: Sequence[str] | None,
) -> list[Check]:
    """All checks, in the order that they are run in.

    Args:
        target: what they are run with.
        places: where they work.
        child: the process that most of them run in.
        found: the result of `machine.survey`.
        may_install: whether C++ may be built.
        study: data sets that the paper's table is computed of; None if it isn't computed.
    """
    plan = _Plan(target, places, child)
    small, *larger = target.sizes
    first, rest = PRECISIONS[0], PRECISIONS[1:]
    plan.here("machine", lambda _: others.look_for_faults(found))
    for road in target.roads:
        plan.model(road, Case(small, itae=True, precision=first))
        plan.build_log(road, Case(small, itae=True, precision=first))
    if target.dry and builds_rtx_here():
        plan.build_log(Road("tensorrt-rtx", "tensorrt-rtx"), Case(small, itae=True, precision=first))
    for precision in PRECISIONS:
        plan.eager(Case(small, itae=True, precision=precision))
    plan.torch_alone("half-range", torch_alone.check_half_range, small)
    plan.torch_alone("k-means", torch_alone.check_kmeans)
    plan.here("gpu-tests", functools.partial(others.run_gpu_tests, target, places.out, places.log))
    for itae in (True, False):
        for precision in rest if itae else PRECISIONS:
            for road in target.roads:
                plan.model(road, Case(small, itae=itae, precision=precision))
    for road in target.roads:
        plan.quantised(road, Case(small, itae=True, precision="int8"))
    for road in target.roads:
        if road.library == "tensorrt" and target.travels != "none":  # TensorRT-RTX's engines are for all its GPUs
            plan.model(road, Case(small, itae=True, precision=first, travels=target.travels))
    plan.bench(small)
    plan.cpp(Case(small, itae=True), may_install=may_install)
    for arch in larger:
        for itae in (True, False):
            for precision in PRECISIONS:
                for road in target.roads:
                    plan.model(road, Case(arch, itae=itae, precision=precision))
                if itae:
                    plan.eager(Case(arch, itae=itae, precision=precision))
        plan.bench(arch)
    if study is not None:
        plan.here("study", lambda left: others.run_study(target, places.out, places.log, left, study))
    return plan.checks


class _Plan:
    """Collects checks."""

    def __init__(self, target: Target, places: Places, child: Child) -> None:
        self.target, self.places, self.child = target, places, child
        self.checks: list[Check] = []
        self._names: set[str] = set()

    def here(self, name: str, run: Callable[[float], Figures], needs: tuple[str, ...] = ()) -> None:
        """Add a check that runs in this process; one of that name only once."""
        if name not in self._names:
            self._names.add(name)
            self.checks.append(Check(name, run, needs))

    def there(
        self, name: str, function: Callable[..., Figures], *arguments: object, needs: tuple[str, ...] = ()
    ) -> None:
        """Add a check that runs in the child process."""
        self.here(name, lambda seconds: self.child.call(seconds, function, *arguments), needs)

    def never(self, name: str, reason: str) -> None:
        """Add a check that this machine can't run."""

        def skip(_: float) -> Figures:
            raise Skipped(reason)

        self.here(name, skip)

    def export(self, road: Road, case: Case) -> str:
        """Add the export of a case, once, and return its name."""
        name = f"export {road.name} {case.name}"
        self.there(name, models.export_case, self.target, self.places.models, case, road)
        return name

    def reference(self, case: Case) -> str:
        """Add eager PyTorch's embeddings of the pictures, once, and return the check's name."""
        name = f"reference {case.what}"
        self.there(name, models.embed_eagerly, self.target, self.places.models, case)
        return name

    def model(self, road: Road, case: Case) -> None:
        """Add all checks of one model on one road."""
        folder = self.places.models
        reason = road.problem or road.lacks.get(case.precision)
        if reason is not None:
            self.never(f"export {road.name} {case.name}", reason)
            return
        export = self.export(road, case)
        subject = f"{road.name} {case.name}"
        self.there(f"golden {subject}", models.check_golden, folder, case, road, needs=(export,))
        self.there(f"batches {subject}", models.check_batches, folder, case, road, needs=(export,))
        reference = self.reference(case)
        needs = (export, reference)
        self.there(f"pictures {subject}", models.check_pictures, self.target, folder, case, road, needs=needs)
        if road.library is not None and case.travels == "none":  # kernels for more GPUs may be others
            self.there(f"fusion {subject}", models.check_fusion, folder, case, road, needs=(export,))
        tensors = f"tensors {subject}"
        if self.target.no_torch is not None:
            self.never(tensors, self.target.no_torch)
        else:
            self.there(tensors, models.check_tensors, self.target, folder, case, road, needs=(export,))

    def quantised(self, road: Road, case: Case) -> None:
        """Add the checks of an int8 model: its limits are those that its export measured on the pictures."""
        if (reason := road.problem or road.lacks.get(case.precision)) is not None:
            self.never(f"export {road.name} {case.name}", reason)
            return
        needs = (self.export(road, case),)
        folder, subject = self.places.models, f"{road.name} {case.name}"
        self.there(f"golden {subject}", models.check_golden, folder, case, road, needs=needs)
        self.there(f"batches {subject}", models.check_batches, folder, case, road, needs=needs)

    def build_log(self, road: Road, case: Case) -> None:
        """Add the check that keeps a builder's log, if the road has a builder."""
        name = f"build-log {road.name}"
        if road.library is None:
            return
        if road.problem is not None:
            self.never(name, road.problem)
            return
        onnx = self.export(Road("cpu"), case)
        evidence = self.places.out / "evidence"
        arguments = (self.target, self.places.models, evidence, case, road)
        self.there(name, models.keep_build_log, *arguments, needs=(onnx,))

    def eager(self, case: Case) -> None:
        """Add the comparison of eager PyTorch on the device with the CPU."""
        name = f"eager torch-{self.target.device} {case.name}"
        if self.target.no_torch is not None:
            self.never(name, self.target.no_torch)
            return
        reference = self.reference(case)
        self.there(name, torch_alone.check_eager, self.target, self.places.models, case, needs=(reference,))

    def torch_alone(self, name: str, function: Callable[..., Figures], *arguments: object) -> None:
        """Add a check that needs PyTorch on the device alone."""
        if self.target.no_torch is not None:
            self.never(name, self.target.no_torch)
        else:
            self.there(name, function, self.target, *arguments)

    def bench(self, arch: Any) -> None:  # noqa: ANN401  # Architecture
        """Add the race at a size."""
        name = f"bench {arch.name}"
        if self.target.no_torch is not None:
            self.never(name, self.target.no_torch)
        else:
            self.there(name, others.run_bench, self.target, self.places.out, arch)

    def cpp(self, case: Case, *, may_install: bool) -> None:
        """Add the comparison of C++ with Python: on the CPU, and on each road that runs."""
        log = self.places.log
        self.here("c++ build", lambda left: others.build_cpp(log, left, may_install=may_install))
        for road in dict.fromkeys(one.name for one in (Road("cpu"), *self.target.roads) if one.problem is None):
            way = next(one for one in (Road("cpu"), *self.target.roads) if one.name == road)
            needs = ("c++ build", self.export(way, case))
            run = functools.partial(self._cpp, case, way)
            self.here(f"c++ {way.name} {case.name}", run, needs)

    def _cpp(self, case: Case, road: Road, left: float) -> Figures:
        return others.check_cpp(self.target, self.places.models, self.places.log, left, case, road)
