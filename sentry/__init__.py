"""The room of the one writer: the ledger, its audit, the gates and the shield.

Plain classes; only `sentry.actor` is made for Ray, and even that imports none of it.
"""
