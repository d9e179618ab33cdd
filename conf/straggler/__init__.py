"""Choices for `straggler=`."""
