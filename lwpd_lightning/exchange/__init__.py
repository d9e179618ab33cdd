"""Moving codewords and parameters between ranks: the K-of-n rule, links, rendezvous. Imports nothing of Lightning."""
