"""The contract between the exporter, every backend and other languages: a model file and the files beside it.

Errors, atomic writes, sets of files that are replaced together, the manifest and its JSON Schema, the golden sample,
the comparison of outputs with it, image keys, the probe of NVIDIA's driver, the loading of TensorRT, checks of
arguments and of the platform, one-line errors and progress of a command. It imports nothing else of ours.
"""
