"""Data sets, and the supervised traces made from them."""
