"""Pictures, from the bytes of a file to a batch as the model takes it.

Imports `contract` alone. `decode` turns a file of any kind into RGB, `preprocess` resizes and crops as the manifest
says, `batches` takes the pictures that a program has in memory.
"""
