"""The encoder behind HTTP and JSON, as projects usually serve a model to a prover."""

import argparse

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from free import make_free
from pydantic import BaseModel

from ebm_encode import Encoder


class Request(BaseModel):
    """States to encode."""

    states: list[str]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    if arguments.free:
        make_free()
    encoder = Encoder.load(arguments.model_path)
    app = FastAPI()

    @app.post("/encode")
    def encode(request: Request) -> JSONResponse:
        out = np.empty((len(request.states), encoder.dim), np.float32)
        encoder.encode_into(request.states, out)
        # FastAPI's own encoder takes much longer for lists of floats.
        return JSONResponse({"embeddings": out.tolist()})

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="error")


if __name__ == "__main__":
    main()
