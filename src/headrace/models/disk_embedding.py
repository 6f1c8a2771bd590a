"""A token embedding whose table stays on disk: the rows of a micro-batch's tokens are read when it runs,
and sent to the device that computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.reader import RangeReader
from headrace.models.transformers_api import ForeignModule, PreTrainedModel
from headrace.models.weight_map import ParameterSource


class DiskEmbedding(nn.Module):
    """Runs the model's own embedding over a table of just the rows that are needed."""

    def __init__(
        self, real: nn.Module, source: ParameterSource, reader: RangeReader, device: torch.device | None = None
    ) -> None:
        """`device` computes; the CPU if it is not given."""
        super().__init__()
        assert isinstance(source.content, Gather), f"{source.name} has to be built first"
        (run,) = source.content.runs()
        self.__dict__["real"] = real
        self.file, self.first_byte = run.entry.file, run.file_offset
        self.row_bytes = source.num_bytes // source.shape[0]
        self.width, self.dtype = source.shape[1], getattr(torch, source.dtype)
        self.reader = reader
        self.device = device or torch.device("cpu")

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        found: Tensor | nn.Module = getattr(self.__dict__["real"], name)
        return found

    def forward(self, token_ids: Tensor) -> object:
        """Returns what the model's embedding returns for token ids of any shape.

        Raises:
            CheckpointError: the file is gone, ends too early, or has changed.
        """
        real = self.__dict__["real"]
        needed, places = torch.unique(token_ids.cpu(), return_inverse=True)
        table = torch.empty((len(needed), self.width), dtype=self.dtype)
        flat = table.view(-1).view(torch.uint8).numpy().data
        numbers = needed.tolist()
        start = 0
        for index, number in enumerate(numbers):
            if index + 1 == len(numbers) or numbers[index + 1] != number + 1:  # neighbours in one read
                first = self.first_byte + (number - (index - start)) * self.row_bytes
                self.reader.read_into(self.file, first, flat[start * self.row_bytes : (index + 1) * self.row_bytes])
                start = index + 1
        whole = real._parameters["weight"]
        real._parameters["weight"] = nn.Parameter(table.to(self.device), requires_grad=False)
        try:
            return real(places.to(self.device))
        finally:
            real._parameters["weight"] = whole


def keep_embedding_on_disk(
    model: PreTrainedModel, source: ParameterSource, reader: RangeReader, device: torch.device | None = None
) -> None:
    """Puts a `DiskEmbedding` in the place of the model's token embedding, whose only parameter `source` is."""
    real: ForeignModule = model.get_input_embeddings()
    real.padding_idx = None  # torch would hold it against the smaller table; it matters for gradients alone
    model.set_input_embeddings(DiskEmbedding(real, source, reader, device))
