"""HelixFlow: many Hugging Face models, one memory budget, continuous batching, one server."""

__version__ = "0.1.0"
