"""Silences the libraries of a training: their own chatter is not for people, progress and tables are."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """For this process, and by its environment for those that it starts."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for library in ("alembic", "mlflow", "ray", "ray.rllib"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
