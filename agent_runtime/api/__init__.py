"""The HTTP interface: routes as one table, problem+json, streams. It parses, calls the supervisor, and serialises."""
