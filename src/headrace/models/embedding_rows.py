"""Token embeddings whose table is not a plain matrix in memory: just the rows that tokens need are made one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.reader import RangeReader
from headrace.kernels.interleaving import interleaved_rows
from headrace.models.transformers_api import ForeignModule, PreTrainedModel
from headrace.models.weight_map import ParameterSource


class EmbeddingOfRows(nn.Module):
    """Runs the model's own embedding over a table of just the rows that are needed."""

    def __init__(self, real: ForeignModule, device: torch.device | None = None) -> None:
        """`device` computes; the CPU if it is not given."""
        super().__init__()
        self.__dict__["real"] = real
        real.padding_idx = None  # torch would hold it against the smaller table; it matters for gradients alone
        self.device = device or torch.device("cpu")

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        found: Tensor | nn.Module = getattr(self.__dict__["real"], name)
        return found

    def rows(self, needed: Tensor) -> Tensor:
        """Returns the rows (R, width) of different tokens (R), in ascending order, on the CPU."""
        raise AssertionError("a subclass says where they are")

    def forward(self, token_ids: Tensor) -> object:
        """Returns what the model's embedding returns for token ids of any shape."""
        real = self.__dict__["real"]
        needed, places = torch.unique(token_ids.cpu(), return_inverse=True)
        table = self.rows(needed)
        whole = real._parameters["weight"]
        real._parameters["weight"] = nn.Parameter(table.to(self.device), requires_grad=False)
        try:
            return real(places.to(self.device))
        finally:
            real._parameters["weight"] = whole


class DiskEmbedding(EmbeddingOfRows):
    """The table stays on disk: rows are read when a micro-batch runs, and sent to the device that computes."""

    def __init__(
        self, real: ForeignModule, source: ParameterSource, reader: RangeReader, device: torch.device | None = None
    ) -> None:
        super().__init__(real, device)
        assert isinstance(source.content, Gather), f"{source.name} has to be built first"
        (run,) = source.content.runs()
        self.file, self.first_byte = run.entry.file, run.file_offset
        self.row_bytes = source.num_bytes // source.shape[0]
        self.width, self.dtype = source.shape[1], getattr(torch, source.dtype)
        self.reader = reader

    def rows(self, needed: Tensor) -> Tensor:
        """Reads them.

        Raises:
            CheckpointError: the file is gone, ends too early, or has changed.
        """
        table = torch.empty((len(needed), self.width), dtype=self.dtype)
        flat = table.view(-1).view(torch.uint8).numpy().data
        numbers = needed.tolist()
        start = 0
        for index, number in enumerate(numbers):
            if index + 1 == len(numbers) or numbers[index + 1] != number + 1:  # neighbours in one read
                first = self.first_byte + (number - (index - start)) * self.row_bytes
                self.reader.read_into(self.file, first, flat[start * self.row_bytes : (index + 1) * self.row_bytes])
                start = index + 1
        return table


class InterleavedEmbedding(EmbeddingOfRows):
    """The table is a head's weight, too, and was interleaved for it."""

    def __init__(self, real: ForeignModule, interleaved: Tensor) -> None:
        """The weight of `real` is put away: its numbers are not in order any more."""
        super().__init__(real)
        self.interleaved = interleaved
        real.weight = nn.Parameter(torch.empty_like(real.weight, device="meta"), requires_grad=False)

    def rows(self, needed: Tensor) -> Tensor:
        """Gathers their numbers."""
        return interleaved_rows(self.interleaved, needed)


def keep_embedding_on_disk(
    model: PreTrainedModel, source: ParameterSource, reader: RangeReader, device: torch.device | None = None
) -> None:
    """Puts a `DiskEmbedding` in the place of the model's token embedding, whose only parameter `source` is."""
    real: ForeignModule = model.get_input_embeddings()
    model.set_input_embeddings(DiskEmbedding(real, source, reader, device))
