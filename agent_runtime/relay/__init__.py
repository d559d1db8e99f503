"""
The relay: a loopback proxy that adds the token to a child's requests, so that no child holds one.

It may import ``delivery`` and everything below it. Only ``serve`` makes one; attempts know it by the protocols of
``delivery``.
"""
