"""Examples that run in a checkout; nothing of this is installed."""
