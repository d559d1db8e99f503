"""
Kernel interfaces: system calls, ``/proc``, cgroups.

It may import only the modules at the root of ``agent_runtime``.
"""
