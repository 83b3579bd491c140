"""Half precision against eager float32 on weights with DINOv2's known trouble planted, as a markdown table.

`precision_table.py [SIZE...]`. Random weights (seed 0), two pictures that the exporter doesn't look at, plain DINOv2
and two settings of ITAE. PyTorch runs the graph node by node and rounds after each; ONNX Runtime's CPU runs fp16 in
float32 between Casts. Cosines are the smallest over the images where no flag differs, in brackets over all. Minutes
and 8 GB for ViT-L.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from precision import TROUBLES, Measured, measure

SIZES = ("vits14", "vitb14", "vitl14")
RUNS = (("fp16", "ONNX Runtime"), ("fp16", "PyTorch"), ("bf16", "PyTorch"))


def main(sizes: tuple[str, ...]) -> None:
    """Print the table, row by row."""
    print("| size | trouble | residual, key norm, logits | run by | cosine plain | cosine ITAE | flags differ |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        for trouble, kinds in TROUBLES.items():
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(size, kinds, ("fp16", "bf16"), Path(folder), numbers=(101, 103), seed=0)
            print("\n".join(rows(size, trouble, measured)), flush=True)


def rows(size: str, trouble: str, measured: Measured) -> list[str]:
    """One line for each precision and what runs it."""
    inside = measured.inside
    lines = []
    for run in RUNS:
        plain, *with_itae = (one for (*which, _), one in measured.compared.items() if tuple(which) == run)
        same, of_all = min(one.cosine for one in with_itae), min(one.cosine_of_all for one in with_itae)
        differ, flagged = (sum(getattr(one, name) for one in with_itae) for name in ("differing", "flagged"))
        farthest, error = (max(getattr(one, name) for one in with_itae) for name in ("farthest", "norm_error"))
        finite = "" if all(one.finite for one in (plain, *with_itae)) else " **not finite**"
        reached = f"{inside.residual:.0f}, {inside.norm:.0f}, {inside.logits:.0f}"
        lines.append(
            f"| {size} | {trouble} | {reached} | {', '.join(run)} | "
            f"{plain.cosine:.7f} | {same:.7f} ({of_all:.7f}){finite} | "
            f"{differ} of {flagged}, up to {farthest:.0e}; norms off by {error:.0e} |"
        )
    return lines


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or SIZES)
