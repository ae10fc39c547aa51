"""The memory that a container's limit leaves."""

from __future__ import annotations

from pathlib import Path

import psutil

from rl.config.machine import free_memory_bytes, limited_room


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text + "\n")


def test_limited_room_counts_file_pages_as_free_and_climbs_to_the_root(tmp_path: Path) -> None:
    group(tmp_path / "user" / "run", max="1000", current="700", stat="anon 500\ninactive_file 150")
    group(tmp_path / "user", max="max", current="900", stat="anon 500")
    assert list(limited_room("1:cpu:/other\n0::/user/run\n", tmp_path)) == [450]
    group(tmp_path / "user", max="800", current="900", stat="anon 900")
    assert list(limited_room("0::/user/run\n", tmp_path)) == [450, 0]


def test_limited_room_reads_the_older_hierarchy_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    group(tmp_path / "memory", limit_in_bytes="2000", usage_in_bytes="600", stat="cache 1\ntotal_inactive_file 100")
    assert list(limited_room("4:memory:/docker/0a1b\n0::/docker/0a1b\n", tmp_path)) == [1500]


def test_free_memory_is_at_most_what_the_machine_has() -> None:
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total
