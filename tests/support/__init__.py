"""Helpers that several tests use, and programs that tests start."""
