"""A `postprocessing` of the contract's shape (6.2) in Python."""

import json
from pathlib import Path

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(parameters["tokenizer_dir"]["string_value"])
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        self.pieces = {id: piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, id in vocabulary.items()}

    def execute(self, requests):
        responses = []
        for request in requests:
            tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
            texts = []
            for row, row_lengths in zip(tokens, lengths):
                for beam, length in zip(row, row_lengths):
                    texts.append("".join(self.pieces.get(int(id), "") for id in beam[:length] if id > 2).encode())
            output = pb_utils.Tensor("OUTPUT", numpy.array(texts, dtype=numpy.object_))
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
