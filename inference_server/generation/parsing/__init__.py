"""What a model writes → content, reasoning and tool calls. Pure: text in, events out, in whatever pieces."""
