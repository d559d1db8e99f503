"""
The types that callers see: bodies, operations, and the OpenAPI document made of them.

It may import ``model`` and the modules at the root.
"""
