"""Checks of a model or a machine: `verify`, `against`, batch invariance, `bench`, `doctor`.

Imports `embedding`, `clustering` and the packages below them. Each check returns a frozen record, which can be
written as text, JSON or JUnit XML.
"""
