"""Mode inspect-text: whether the rows of text features have the roles that the config claims."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import annotations, release, tokens


def run(values: Any, config: ConfigDict) -> None:
    """Mode `inspect-text`: prints `text_similarity` for --split, else that of the config."""
    print(text_similarity(config.data, config.evaluate.split))


def text_similarity(data: Any, split: str, n: int = 3) -> str:
    """Describes the first n queries' rows, so that a user can see whether data.text_layout fits.

    CLIP and LLaMA are causal: the rows before the words (start-of-text, prompt) are the same in
    every query, and those from the first word on are not.

    Returns:
        Text: for each query, its rows' roles, their cosine similarity with the same row of the
        first query, and with one another. Padding is left out.

    Raises:
        DataError: as `load_split`, but for the videos.
    """
    release.check_config(data, (data.text_dir,))
    blocks, first = [], None
    for query in annotations.read_split(data, split)[:n]:
        path, rows = release.read_query_rows(data, query.qid)
        roles = tokens.token_roles(rows, tokens.TEXT_LAYOUTS[data.text_layout])
        unit = tokens.unit_rows(rows[roles != tokens.PADDING])
        first = unit if first is None else first
        same = np.einsum('rd,rd->r', unit[:len(first)], first[:len(unit)])
        lines = [
            f'qid {query.qid}: {query.query}',
            f'{path}: {len(rows)} rows, {len(rows) - len(unit)} of them padding, '
            f'layout {data.text_layout!r}',
            'row  role     query 1 |' + ''.join(f'{i:>6}' for i in range(len(unit))),
        ]
        for i, similarities in enumerate(unit @ unit.T):
            shared = f'{same[i]:.2f}' if i < len(same) else ''
            cells = ''.join(f'{value:6.2f}' for value in similarities)
            lines.append(f'{i:>3}  {tokens.ROLES[roles[i]]:<8} {shared:>7} |{cells}')
        blocks.append('\n'.join(lines))
    return '\n\n'.join(blocks)
