"""`scripts/gpu-check`: everything that only a machine with a GPU can show, in one command, with a report.

The checks run in a process of their own, which is replaced after each that fails: a broken GPU context or a crash
ends one check, not the others. `--dry-run` runs the same code with ONNX Runtime on the CPU and a small model.
"""
