"""Somebody else's ONNX: read, inspected, given a method, and proven.

What a graph means is found in two ways that check each other: its structure (`surgery.any_attention`) says which
tensors are queries, keys and values, and a run of it says how large they are and what a scale or a mask holds.
"""
