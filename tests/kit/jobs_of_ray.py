"""Opens Ray's jobs, says where they are, and waits: so that a test can kill whoever opened them.

    python tests/kit/jobs_of_ray.py NAME VALUE      (a mark for every process)
"""

from __future__ import annotations

import json
import sys
import time

from train.job_cluster import job_client

if __name__ == "__main__":
    with job_client({sys.argv[1]: sys.argv[2]}, cpus=2) as client:
        print(json.dumps({"url": client.get_address(), "headers": client._headers}), flush=True)
        time.sleep(600)
