"""CLIs with a fault each, which the demo must find; the tests run them by their paths."""
