"""The loop: schedule → run → commit, for one model."""
