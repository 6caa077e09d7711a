"""Bayesian optimisation of target, stop and limit offset, per strategy and bucket of the market, on recorded bars.

`optimise` is the job. `rules` say what each strategy trades on, `entries` which of its signals fall into a bucket and
what levels earn on them, `search` proposes levels with Optuna on Ray Tune, `judged` holds what was chosen against the
middle of the grid on later bars, `result` is what is left for people. What the hub takes is `router.param_start`.
"""
