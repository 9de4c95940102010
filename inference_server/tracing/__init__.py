"""What happened to each request: its times and counts, one log line, and OpenTelemetry spans if asked for."""
