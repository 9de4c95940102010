"""What the operator decides: models.yaml, HELIXFLOW_* variables and flags, as frozen values."""
