"""Attention over the paged KV cache: one contract, one file per backend."""
