"""
The only package that spawns and signals: the child, its pipes, its containment.

It may import the modules at the root, and knows nothing of tokens or executions.
"""
