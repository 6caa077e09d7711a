"""The base room: what a policy is, what it answers, how it is stored, and what its answers earn on bars.

Imports nothing of the project above it, and no framework.
"""
