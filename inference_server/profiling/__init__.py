"""Profiles of running models: captured for a few seconds, given as files that others' viewers open."""
