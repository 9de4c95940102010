"""Pure ASGI middleware: who may ask, from where, and how long it took."""
