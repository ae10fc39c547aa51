"""The description of a dataset for `rl preprocess`."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rl.config.kinds import CHECKED, InputPath, OutputPath, Section, Seed


@dataclass(config=CHECKED)
class DatasetConfig(Section):
    """One dataset to bring into rows of messages, ground truth and data source (configs/datasets/*.yaml)."""

    input: InputPath = ""
    """A jsonl, json or parquet file, a folder of them, or a folder that `save_to_disk` of the library `datasets`
    wrote."""
    output_prefix: OutputPath = ""
    """Path of the file to write, without `.parquet`."""
    map_keys: dict[str, str] = field(default_factory=dict)
    """Column for each part: `prompt` (text or messages), `query` (appended to it), `response` (the ground truth; dots
    reach into records, as in `reward_model.ground_truth`), `system` and `data_source`; an empty name leaves it out.
    Without `prompt` and `response`, columns with usual names are taken (docs/data.md)."""
    answer_pattern: str = ""
    """Regular expression with one group that matches the answer in the column `response`, as `#### (.*)` in GSM8K."""
    inline_calls: Literal["retool"] | None = None
    """Form in which assistant messages write calls and results out as text; they become tool calls and tool messages.
    `retool`: `<code>` and `<interpreter>`, as in JoeYing/ReTool-SFT."""
    system_prompt: str = ""
    """System message of rows that have none of their own."""
    data_source: str = ""
    """Source of rows that have no column for it; by default the stem of the input."""
    dataset_additional_keys: list[str] = field(default_factory=list)
    """Further columns to keep, for rewards; lists and records are stored as JSON text."""
    drop_duplicates: bool = False
    """Keep one of the rows with equal messages, ground truth and source."""
    skip_bad_rows: bool = False
    """Skip and count rows that cannot be used; otherwise the first of them is an error."""
    prompt_type: str = "empty"
    """Template in `rl.chat.templates.TEMPLATES` that the rows are meant for. It is rendered at run time, from
    `rl_config.prompt_type`; here it is recorded with the rows, and a run with another one warns."""
    seed: Seed = 1234
    """Seed of the shuffle before the split."""
    eval_size: int = Field(default=0, ge=0, le=1_000_000_000)
    """Rows to put into `<output_prefix>_eval.parquet` instead; 0 splits nothing and keeps the order."""
