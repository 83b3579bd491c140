"""Backends: each file serves one kind of model file through the `Session` protocol."""

from __future__ import annotations
