"""How fast the hub is, measured beside a peer and a floor in one run on one machine. `python -m ci.bench` runs it all.

A figure alone says more of the machine than of the hub, so every row is a ratio: to the peer, which anyone could have
without the hub, and to the floor, under which nothing on this engine can come. No test asserts a time.
"""
