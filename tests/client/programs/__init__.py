"""Programs that use the client; the tests run them by their paths."""
