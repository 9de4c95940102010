"""Who may ask, for which models, and how much. Policies over values; knows no HTTP."""
