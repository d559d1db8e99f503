"""
The types that callers see: bodies, operations, and the OpenAPI document made of them.

It may import what ``api`` may, apart from ``api`` itself.
"""
