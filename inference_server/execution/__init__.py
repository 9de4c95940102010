"""Computes: everything that touches tensors in a step."""
