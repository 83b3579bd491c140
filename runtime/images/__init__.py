"""Pictures, from the bytes of a file to a batch as the model takes it.

Imports `contract` alone. `decode` gives RGB whatever is in the file, `preprocess` resizes and crops as the manifest
says, `batches` takes what a program has in memory.
"""
