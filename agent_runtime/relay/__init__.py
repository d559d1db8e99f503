"""
The relay: a loopback proxy that adds the token to a child's requests, so that no child holds a token.

It may import ``delivery`` and everything below it. Only ``serve`` makes a relay; attempts use it through
``delivery``.
"""
