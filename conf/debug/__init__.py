"""Choices for `debug=`."""
