"""
SQLite and line files: records, answers, transcripts and tasks on disk, and their retention.

It may import ``telemetry`` and everything below it.
"""
