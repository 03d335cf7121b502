"""Implementations of operations that are fast for many clients on one device."""
