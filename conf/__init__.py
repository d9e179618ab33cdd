"""The Hydra configuration tree, installed as package data."""
