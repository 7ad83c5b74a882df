"""A `preprocessing` of the contract's shape (6.1) in Python: the vocabulary's longest pieces, which is all that these tests need."""

import json
from pathlib import Path

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(parameters["tokenizer_dir"]["string_value"])
        self.vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]

    def encode(self, text):
        text, ids = text.replace(" ", "\u0120"), []
        while text:
            size = next(size for size in range(len(text), 0, -1) if text[:size] in self.vocabulary)
            ids.append(self.vocabulary[text[:size]])
            text = text[size:]
        return ids

    def words(self, request, name, batch):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return numpy.zeros([batch, 2, 0], numpy.int32)
        rows = []
        for row in tensor.as_numpy().reshape(batch, -1):
            ids = [self.encode(word.decode()) for word in row if word]
            flat = [id for word in ids for id in word]
            ends = list(numpy.cumsum([len(word) for word in ids]))
            rows.append((flat, ends))
        width = max(1, *(len(flat) for flat, _ in rows))
        packed = [[flat + [0] * (width - len(flat)), ends + [-1] * (width - len(ends))] for flat, ends in rows]
        return numpy.array(packed, numpy.int32)

    def one(self, request, name, default, batch):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return numpy.full([batch, 1], default, numpy.int32) if tensor is None else tensor.as_numpy()

    def execute(self, requests):
        responses = []
        for request in requests:
            prompts = [row[0].decode() for row in pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy()]
            ids = [[0] + self.encode(prompt) for prompt in prompts]
            batch, width = len(ids), max(map(len, ids))
            outputs = {
                "INPUT_ID": numpy.array([row + [2] * (width - len(row)) for row in ids], numpy.int32),
                "REQUEST_INPUT_LEN": numpy.array([[len(row)] for row in ids], numpy.int32),
                "DECODER_INPUT_ID": numpy.full([batch, 1], 2, numpy.int32),
                "REQUEST_DECODER_INPUT_LEN": numpy.ones([batch, 1], numpy.int32),
                "BAD_WORDS_IDS": self.words(request, "BAD_WORDS_DICT", batch),
                "STOP_WORDS_IDS": self.words(request, "STOP_WORDS_DICT", batch),
                "EMBEDDING_BIAS": numpy.zeros([batch, 0], numpy.float32),
                "REQUEST_OUTPUT_LEN": pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy(),
                "OUT_END_ID": self.one(request, "END_ID", 1, batch),
                "OUT_PAD_ID": self.one(request, "PAD_ID", 2, batch),
            }
            tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
