"""ITAE: `options` are its data, `reference` computes it in PyTorch, `graph` writes it as ONNX nodes."""
