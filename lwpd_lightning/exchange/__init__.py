"""The protocol by which codewords are exchanged and added up. Imports nothing of Lightning."""
