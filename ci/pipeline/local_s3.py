"""A server on loopback that speaks real S3, for machines without one: moto's, in a process of its own.

It holds its objects in memory, so they end with it. It is for trying the chain, not for keeping policies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ci.pipeline.held import held, until_let_go
from ci.pipeline.step import FAILED, Stopped, notes_folder

MODULE, NOTE, BUCKET = "ci.pipeline.local_s3", "local_s3.json", "elite-policies"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_DEFAULT_REGION": "us-east-1",
               "AWS_EC2_METADATA_DISABLED": "true"}  # of this server, which lets anybody in
MADE_S, POLL_S = 10.0, 0.1


@contextmanager
def local_s3(home: Path, port: int = 0) -> Iterator[str]:
    """Its URL, with an empty bucket, for the length of the block. The environment must hold CREDENTIALS."""
    ready, log = notes_folder(home) / NOTE, home / "logs" / "local_s3.log"
    with held(MODULE, ["--ready", str(ready), "--port", str(port)], ready, log) as note:
        make_bucket(note["url"])
        yield note["url"]


def make_bucket(url: str) -> None:
    """Nothing changes if it is there."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session().client("s3", endpoint_url=url)
    deadline = time.monotonic() + MADE_S
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise Stopped(FAILED, f"no bucket at {url}: {error}") from error
            time.sleep(POLL_S)


@click.command()
@click.option("--ready", type=click.Path(path_type=Path), required=True)
@click.option("--port", type=int, default=0)
def main(ready: Path, port: int) -> None:
    """Serve until the standard input ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        host, bound = server.get_host_and_port()
        until_let_go(ready, {"url": f"http://{host}:{bound}"})
    finally:
        server.stop()


if __name__ == "__main__":
    main()
