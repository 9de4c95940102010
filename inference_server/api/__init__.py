"""The thin OpenAI-compatible HTTP layer. JSON stops here."""
