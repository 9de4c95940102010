"""One request from messages to text: resolve → lease → encode → run → decode → account."""
