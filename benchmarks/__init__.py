"""Benchmarks; tests run them only at tiny sizes."""
