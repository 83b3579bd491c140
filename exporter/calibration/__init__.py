"""`python -m exporter calibrate`: looks for artifacts in the user's images, and recommends options of ITAE.

images ─ blocks (norms and attention of every block) ─ tally ─ valley ─ rule ─ trials on other images ─ file and page

It runs the eager model. Unlike the rest of the exporter it imports `sources`, `clustering`, `evaluation` and `report`
of the runtime. `recommendation` alone is light: an export reads the file by it.
"""
