"""What upstream's client programs send: names, types and shapes exactly as theirs, and their way to wait for answers."""

import queue

import numpy
import tritonclient.grpc as grpc
import tritonclient.http as http

PROMPT = "Once upon a time"
# Outputs that return_perf_metrics asks for.
PERF = [
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
]
DTYPES = {"int32": "INT32", "float32": "FP32", "bool": "BOOL", "uint64": "UINT64", "object": "BYTES"}


def tensor(module, name, value, dtype):
    array = numpy.array(value, dtype=dtype)
    result = module.InferInput(name, list(array.shape), DTYPES[numpy.dtype(dtype).name])
    result.set_data_from_numpy(array)
    return result


def prompt_ids(server):
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    inputs = [tensor(http, "QUERY", [[PROMPT.encode()]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[1]], numpy.int32)]
    return client.infer("preprocessing", inputs).as_numpy("INPUT_ID")


def core_inputs(ids, output_len, streaming, **more):
    """What inflight_batcher_llm_client.py always sends."""
    inputs = [
        tensor(grpc, "input_ids", ids, numpy.int32),
        tensor(grpc, "input_lengths", [[len(ids[0])]], numpy.int32),
        tensor(grpc, "request_output_len", [[output_len]], numpy.int32),
        tensor(grpc, "beam_width", [[1]], numpy.int32),
        tensor(grpc, "temperature", [[1.0]], numpy.float32),
        tensor(grpc, "streaming", [[streaming]], bool),
        tensor(grpc, "end_id", [[-1]], numpy.int32),
        tensor(grpc, "pad_id", [[2]], numpy.int32),
        tensor(grpc, "runtime_top_k", [[1]], numpy.int32),
        tensor(grpc, "runtime_top_p", [[0.0]], numpy.float32),
    ]
    return inputs + [tensor(grpc, name, [[value]], type(value)) for name, value in more.items()]


class Stream:
    """A gRPC stream whose results come in a queue."""

    def __init__(self, server):
        self.results = queue.Queue()
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self.client.start_stream(callback=lambda result, error: self.results.put((result, error)))

    def send(self, *arguments, **options):
        self.client.async_stream_infer(*arguments, **options)

    def get(self):
        result, error = self.results.get(timeout=60)
        assert error is None, error
        return result

    def until_final(self):
        results = []
        while True:
            results.append(self.get())
            if results[-1].get_response().parameters["triton_final_response"].bool_param:
                self.client.stop_stream()
                return results
