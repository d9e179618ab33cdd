"""The K-of-n rule: what counts, how long to wait, with what weight. No bytes, no sockets; time is passed in."""
