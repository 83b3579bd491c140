"""The stream from pictures to rows: the one loop that every caller of a model uses.

Imports `backends`, `sources`, `store`, `images` and `contract`. `model.Model` is a loaded model in a program,
`stream.embed_stream` the loop, `workers` a process for each device, `embedder.embed_sources` writes a store.
"""
