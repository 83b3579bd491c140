"""What can be wrong with a model or a machine, looked for: `verify`, `against`, batch invariance, `bench`, `doctor`.

Imports `embedding`, `clustering` and what they import. Each check gives a frozen record, and text, JSON or JUnit XML
of it.
"""
