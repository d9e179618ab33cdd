"""Bytes between ranks: encrypted links, messages, keys, rendezvous, shared memory. Knows nothing of gradients."""
