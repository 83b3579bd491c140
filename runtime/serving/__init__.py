"""NVIDIA Triton Inference Server: a model repository, and the models of it that run in Triton's Python backend.

Imports `images`, `contract`, the assignment of `clustering`, and `runtime.load`. `repository` writes the repository,
with the configurations of `model_config`. Triton's Python processes import `tensor_model` and `images_model`, so these
work with numpy 1 too, which Triton's Python backend may need.
"""
