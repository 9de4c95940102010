"""Decides what runs in each step. Pure Python: no torch, no clock, no thread, no I/O."""
