"""
The composition root: everything is made and wired here, and nowhere else.

It may import everything but the commands, the client, the doctor and the demo.
"""
