"""Methods that predict a person's choices from a few others, side by side.

Each is a small file with the contract of `fsa.rivals.method`; docs/rivals.md lists all.
"""
