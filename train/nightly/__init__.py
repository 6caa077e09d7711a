"""The nightly jobs: a plan of steps, run one after another or side by side as Ray jobs, that may be killed anywhere."""
