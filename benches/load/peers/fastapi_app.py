"""What one writes to serve an ONNX model with FastAPI, with metrics and a log, as this server has them.

    fastapi_app.py MODEL PORT [lean]

Where there was a choice it was made for speed: one worker with uvloop and httptools, and inference on the event loop for
models so small that a hop to a thread costs more. Metrics and the log line are a middleware, as FastAPI's manual shows;
lean puts them into the handlers, which is faster and forgets the requests that no handler sees.
"""

import sys
import time
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from loguru import logger
from prometheus_client import Counter, Histogram, make_asgi_app
from pydantic import BaseModel

# Runs that take longer would keep the event loop from other requests.
SMALL_SECONDS = 0.001

lean = sys.argv[3:] == ["lean"]
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tensor = session.get_inputs()[0]
row = tuple(tensor.shape[1:])
Rows: Any = float
for _ in tensor.shape:
    Rows = list[Rows]


class Instances(BaseModel):
    inputs: Rows


class Predictions(BaseModel):
    outputs: list[list[float]]


predictions = Counter("ml_predictions_total", "Predictions", ["status"])
durations = Histogram("ml_prediction_duration_seconds", "Duration of a prediction")
app = FastAPI()
app.mount("/metrics", make_asgi_app())


def infer(values: np.ndarray) -> np.ndarray:
    return session.run(None, {tensor.name: values})[0]


def is_small() -> bool:
    values = np.zeros((1, *row), np.float32)
    infer(values)
    started = time.perf_counter()
    infer(values)
    return time.perf_counter() - started < SMALL_SECONDS


small = is_small()


def account(path: str, status: int, started: float) -> None:
    elapsed = time.perf_counter() - started
    durations.observe(elapsed)
    predictions.labels("success" if status == 200 else "error").inc()
    logger.info("request", path=path, status=status, seconds=elapsed)


if not lean:

    @app.middleware("http")
    async def around(request: Request, call_next):
        started = time.perf_counter()
        response = await call_next(request)
        account(request.url.path, response.status_code, started)
        return response


async def predict(request: Request, values: np.ndarray) -> np.ndarray:
    started = time.perf_counter()
    outputs = infer(values) if small else await run_in_threadpool(infer, values)
    if lean:
        account(request.url.path, 200, started)
    return outputs


@app.post("/predict")
async def predict_json(request: Request, instances: Instances) -> Predictions:
    outputs = await predict(request, np.array(instances.inputs, np.float32))
    return Predictions(outputs=outputs.tolist())


@app.post("/predict-raw")
async def predict_raw(request: Request) -> Response:
    values = np.frombuffer(await request.body(), np.float32).reshape(-1, *row)
    outputs = await predict(request, values)
    return Response(outputs.tobytes(), media_type="application/octet-stream")


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"live": True}


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stdout, serialize=True)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
