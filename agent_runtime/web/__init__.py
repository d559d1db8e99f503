"""
HTTP plumbing that knows no route: the server protocol, access, the access log, problems, preferences.

It may import ``model`` and the modules at the root.
"""
