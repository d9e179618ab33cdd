"""Choices for `scheme=`."""
