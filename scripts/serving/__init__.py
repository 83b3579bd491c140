"""`scripts/serve`: a Triton server on this machine's CPU, behind a guard that limits HTTP requests."""
