"""Choices for `logger=`."""
