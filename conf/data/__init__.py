"""Choices for `data=`."""
