"""What a model is before it is loaded: where it comes from, what its files say, what it will weigh. Torch-free."""
