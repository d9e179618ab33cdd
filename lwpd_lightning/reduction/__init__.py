"""Adding codewords up among those who count: who adds which slice up, and how slices and their sums get there."""
