"""The continuous integration of the product: from tests to a new policy in the running hub, one file a step.

    unit_tests ─ cluster ─ train_small ─ forward ─ track ─ publish ─ webhook ─ verify

`python -m ci.pipeline` runs the chain; `python -m ci.pipeline.STEP` runs one step, which is what a workflow does. Steps
tell each other what they found by small files in HOME/ci, so they may be processes of their own, and be repeated.
"""
