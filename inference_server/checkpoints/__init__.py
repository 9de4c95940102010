"""What a model is before it is loaded: its source, what its files say, what it will weigh. Torch-free."""
