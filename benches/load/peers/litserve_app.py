"""What one writes to serve an ONNX model with LitServe, with its dynamic batching on.

litserve_app.py MODEL PORT
"""

import sys

import litserve
import numpy as np
import onnxruntime

MAX_BATCH_SIZE = 32
# As long as a small model's requests may wait for company. 0 would turn batching off.
BATCH_TIMEOUT_SECONDS = 0.001


class Predict(litserve.LitAPI):
    def setup(self, device):
        self.session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request):
        return np.array(request["inputs"], np.float32)

    # A request is one row here, as in the loads; the batch is what LitServe has gathered.
    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, values):
        return self.session.run(None, {self.input: values})[0]

    def unbatch(self, outputs):
        return [outputs[position : position + 1] for position in range(len(outputs))]

    def encode_response(self, outputs):
        return {"outputs": outputs.tolist()}


if __name__ == "__main__":
    api = Predict(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
