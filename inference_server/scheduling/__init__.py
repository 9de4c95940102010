"""Decides what each step computes: pure Python, no torch, clock, thread or I/O."""
