"""The `helixflow` command: one file per verb. It knows configuration and the server's HTTP interface."""
