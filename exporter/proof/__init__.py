"""The proof that an exported graph is right: golden samples, the gate, parity with eager PyTorch, half range.

Imports no other station of the street.
"""
