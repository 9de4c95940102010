"""What operators see: metrics and logs. Never a prompt, never a key."""
