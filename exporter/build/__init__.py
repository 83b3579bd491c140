"""From a proven ONNX file to a published model: engine, its log, fusion, timing cache, publishing.

Imports no other station of the street.
"""
