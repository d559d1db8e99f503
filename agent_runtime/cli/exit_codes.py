"""The exit codes of ``run``, ``status``, ``drain`` and ``token wait``."""

EXIT_SUCCESS = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_TRY_LATER = 75
"""EX_TEMPFAIL. Source: https://man7.org/linux/man-pages/man3/sysexits.h.3head.html"""

EXIT_CANCELLED = 130
EXIT_BROKEN_PIPE = 141
