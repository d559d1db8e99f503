"""The relay, against real sockets on loopback."""
