"""How well a model's embeddings cluster: labelled data sets, the paper's protocol, tests of differences.

Imports `embedding`, `clustering` and what they import. `datasets.open_dataset` reads a data set, `cache.embed_dataset`
embeds it once, `protocol.evaluate` scores it.
"""
