"""An application on Serve that does nothing, as its documentation shows one: FastAPI behind `serve.ingress`."""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve

from ci.bench.setting import NO_OP_PATH

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class NoOp:
    @api.get(NO_OP_PATH)
    async def nothing(self) -> dict[str, bool]:
        return {"ok": True}
