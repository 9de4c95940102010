"""The one door between the server process and the processes that hold models."""
