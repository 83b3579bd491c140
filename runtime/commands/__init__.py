"""The subcommands of `python -m runtime`, one file each: `WHAT`, `EXAMPLES`, `add_arguments(parser)`, `run(arguments)`.

All are imported to build the parser, so each imports heavy packages inside `run`. A command may import every package;
nobody imports `commands`.
"""
