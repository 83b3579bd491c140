"""`scripts/study`: what the paper's table needs, in one command, by the exporter and the runtime as commands."""
