"""The subcommands of `python -m runtime`, one file each: `WHAT`, `EXAMPLES`, `add_arguments(parser)`, `run(arguments)`.

They are imported to build the parser, so each imports what is heavy in its `run`.
"""
