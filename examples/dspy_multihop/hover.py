"""The tutorial's own data, for machines that reach the hub: claims of HoVer, and Wikipedia's abstracts of 2017.

    <output>/corpus.jsonl                      5 million abstracts
    <output>/{train,dev,test}.jsonl            600 claims, 300 claims, and the rest

Runs where dspy and `datasets` are installed.

Usage: python -m examples.dspy_multihop.hover [--output data/dspy_multihop_hover]
"""

from __future__ import annotations

import argparse
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ABSTRACTS = "https://huggingface.co/dspy/cache/resolve/main/wiki.abstracts.2017.tar.gz"
NUM_HOPS = 3
NUM_TRAIN, NUM_DEV = 600, 300


def read_hover(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Select the claims of `NUM_HOPS` hops, one for each HotpotQA question, and shuffle them as the tutorial does.

    Args:
        rows: HoVer's rows, with `claim`, `supporting_facts`, `hpqa_id` and `num_hops`.

    Returns:
        Rows with `claim` and `titles`.
    """
    claims, seen = [], set()
    for row in rows:
        if row["num_hops"] == NUM_HOPS and row["hpqa_id"] not in seen:
            seen.add(row["hpqa_id"])
            titles = sorted({fact["key"] for fact in row["supporting_facts"]})
            claims.append({"claim": row["claim"], "titles": titles})
    random.Random(0).shuffle(claims)
    return claims


def main() -> None:
    """Parse the command line, download the data and write them, unless they are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/dspy_multihop_hover"))
    output = parser.parse_args().output
    if (output / "test.jsonl").is_file():
        print(f"hover: {output} exists already")
        return
    output.mkdir(parents=True, exist_ok=True)
    _fetch_abstracts(output / "corpus.jsonl")
    from datasets import load_dataset

    claims = read_hover(load_dataset("hover-nlp/hover", split="train", trust_remote_code=True))
    parts = {
        "train": claims[:NUM_TRAIN],
        "dev": claims[NUM_TRAIN : NUM_TRAIN + NUM_DEV],
        "test": claims[NUM_TRAIN + NUM_DEV :],
    }
    for name, rows in parts.items():
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"hover: {output / name}.jsonl, {len(rows)} claims")


def _fetch_abstracts(target: Path) -> None:
    from dspy.utils import download

    download(ABSTRACTS)
    archive = Path(ABSTRACTS.rsplit("/", 1)[1])
    with tarfile.open(archive) as files:
        members = [member for member in files if member.name.endswith("wiki.abstracts.2017.jsonl")]
        content = files.extractfile(members[0]) if members else None
        if content is None:
            raise SystemExit(f"hover: {archive}: holds no wiki.abstracts.2017.jsonl. Remove the file and try again.")
        with target.open("wb") as corpus:
            while block := content.read(1 << 20):
                corpus.write(block)
    archive.unlink()


if __name__ == "__main__":
    main()
