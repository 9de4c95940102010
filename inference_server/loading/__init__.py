"""From a checkpoint to weights on a device."""
