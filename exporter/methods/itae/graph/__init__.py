"""ITAE as ONNX nodes: `inject` is the pass, `detect` finds artifacts, `attenuate` changes their logits."""
