"""Random rows, laid end to end for our models and padded for stock ones."""

from typing import Any

import torch

from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.model.unpadded_batch import PretrainingBatch


def make_rows(lengths: list[int], seed: int) -> list[dict[str, Any]]:
    """Rows of random ids with one to three masks each; a row of one token has none."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        most = min(3, length - 1)
        count = int(torch.randint(1, most + 1, (1,), generator=generator)) if most else 0
        rows.append(
            {
                "tokens": torch.randint(1, 97, (length,), generator=generator),
                "segment_ids": (torch.arange(length) > length // 2).long(),
                "positions": (1 + torch.randperm(length - 1, generator=generator)[:count])
                .sort()
                .values,
                "labels": torch.randint(0, 97, (count,), generator=generator),
                "next": int(torch.randint(0, 2, (1,), generator=generator)),
            }
        )
    return rows


def flatten(rows: list[dict[str, Any]], with_pairs: bool) -> PretrainingBatch:
    """The rows end to end."""
    starts = torch.tensor([0, *(len(row["tokens"]) for row in rows)]).cumsum(0)
    return PretrainingBatch(
        tokens=torch.cat([row["tokens"] for row in rows]),
        segment_ids=torch.cat([row["segment_ids"] for row in rows]),
        positions=torch.cat([torch.arange(len(row["tokens"])) for row in rows]),
        cu_seqlens=starts,
        max_seqlen=int(starts.diff().max()),
        masked_index=torch.cat(
            [row["positions"] + start for row, start in zip(rows, starts, strict=False)]
        ),
        masked_labels=torch.cat([row["labels"] for row in rows]),
        is_random_next=torch.tensor([row["next"] for row in rows]) if with_pairs else None,
    )


def pad(rows: list[dict[str, Any]], with_pairs: bool) -> dict[str, torch.Tensor]:
    """The rows as the stock model takes them."""
    width = max(len(row["tokens"]) for row in rows)
    batch = {
        name: torch.zeros(len(rows), width, dtype=torch.long)
        for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    labels = torch.full((len(rows), width), -100)
    for number, row in enumerate(rows):
        length = len(row["tokens"])
        batch["input_ids"][number, :length] = row["tokens"]
        batch["token_type_ids"][number, :length] = row["segment_ids"]
        batch["attention_mask"][number, :length] = 1
        labels[number, row["positions"]] = row["labels"]
    pairs = (
        {"next_sentence_label": torch.tensor([row["next"] for row in rows])} if with_pairs else {}
    )
    return batch | {"labels": labels} | pairs


def losses_and_gradients(
    model: PretrainingModel, batch: PretrainingBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """With fixed dropout."""
    torch.manual_seed(7)
    model.zero_grad()
    losses = torch.stack(model(batch))
    losses.sum().backward()
    return losses.detach(), {
        name: parameter.grad.clone() for name, parameter in model.network.named_parameters()
    }
