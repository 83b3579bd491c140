"""The tools that rewrite a graph: patterns as data, the matcher, attention sites, the editor, and passes.

A pass is a function of a graph and plain arguments: a `GraphFacts` and what is asked for. It gives the names of what it
changed. It knows no method, no command line and no torch. `runner` runs passes one after another and checks what each
of them left; the pipeline decides which passes run, and a method adds its own.
"""
