"""ReTool and Search-R1 with Qwen2.5 7B and 32B: memory, arithmetic of a step, the prompt, and what the scripts call."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.chat.self_test import check_renderer
from rl.config.device_memory import device_memory
from rl.config.estimates import GIB, batch_arithmetic, memory_estimate
from rl.config.load import load_config, load_dataset_config
from rl.config.model_facts import count_parameters
from rl.config.schema import Config
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.tools.registry import load_toolbox
from tests.chat_templates import byte_level

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))

NAMES = (
    "sft_qwen25_7b_retool",
    "sft_qwen25_32b_retool",
    "dapo_qwen25_7b_retool",
    "dapo_qwen25_32b_retool",
    "grpo_qwen25_7b_search_r1",
    "grpo_qwen25_32b_search_r1",
)


@functools.cache
def load(name: str, *overrides: str) -> Config:
    return load_config(name, ["megatron_training.device=cuda", *overrides])


def test_parameters_of_qwen25_32b_are_those_of_the_published_files() -> None:
    biases = 64 * (5120 + 2 * 1024)
    assert count_parameters(load("dapo_qwen25_32b_retool").model) + biases == 32_763_876_352


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_fits_on_gpus_of_80_gb_with_room_to_spare(name: str) -> None:
    config = load(name)
    need = device_memory(config, config.model, with_engines=not name.startswith("sft"))
    assert 1.2 * need.learning_bytes < 79 * GIB  # estimates are so exact
    assert 1.2 * need.engine_bytes < need.engine_share * 79 * GIB
    assert need.resident_bytes < (1 - need.engine_share) * 79 * GIB


def test_cold_start_of_32b_fits_on_16_gpus_and_not_on_8() -> None:
    sizes = [
        device_memory(config, config.model, with_engines=False).learning_bytes / GIB
        for count in (16, 8)
        for config in [load("sft_qwen25_32b_retool", f"rl_config.actor_resource.num_devices={count}")]
    ]
    # 4,095 M parameters per GPU: 2 + 4 bytes each, and 12 divided by two replicas or one.
    # Activations have 3.3 GiB, a process 2.
    assert sizes == pytest.approx([6 * 3.814 + 6 * 3.814 + 5.3, 6 * 3.814 + 12 * 3.814 + 5.3], abs=0.1)
    assert sizes[0] * 1.2 < 79 < sizes[1] * 1.2


@pytest.mark.parametrize(
    ("name", "replicas", "trajectories", "optimizer_steps", "longest"),
    [
        ("dapo_qwen25_7b_retool", 2, 64 * 16, 4, 18432),
        ("dapo_qwen25_32b_retool", 4, 512 * 16, 8, 18432),
        ("grpo_qwen25_7b_search_r1", 2, 512 * 5, 10, 6656),
        ("grpo_qwen25_32b_search_r1", 4, 512 * 5, 10, 6656),
    ],
)
def test_a_step_has_the_published_sizes(
    name: str, replicas: int, trajectories: int, optimizer_steps: int, longest: int
) -> None:
    batch = batch_arithmetic(load(name))
    assert batch.data_parallel_size == replicas
    assert (batch.num_trajectories, batch.num_optimizer_steps) == (trajectories, optimizer_steps)
    assert batch.tokens_per_trajectory == longest


def test_a_mini_batch_of_search_r1_has_the_published_256_trajectories_but_whole_groups() -> None:
    batch = batch_arithmetic(load("grpo_qwen25_7b_search_r1"))
    assert batch.trajectories_per_mini_batch == 52 * 5  # 512 prompts in ten parts of 51 or 52


def test_cold_start_uses_each_of_2000_conversations_six_times() -> None:
    training = load("sft_qwen25_7b_retool").megatron_training
    assert training.train_iters * training.global_batch_size == 6 * 2000
    assert training.seq_length is not None and training.seq_length >= 16384


def test_only_search_r1_has_a_reference() -> None:
    with_reference = [n for n in NAMES if memory_estimate(config := load(n), config.model).reference_bytes]
    assert with_reference == ["grpo_qwen25_7b_search_r1", "grpo_qwen25_32b_search_r1"]


QWEN25_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""What Qwen2.5's own template does without tools."""

PUBLISHED_QUESTION = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get new "
    "information. After reasoning, if you find you lack some knowledge, you can call a search engine by <search> query "
    "</search> and it will return the top searched results between <information> and </information>. You can search as "
    "many times as your want. If you find no further external knowledge needed, you can directly provide the answer "
    "inside <answer> and </answer>, without detailed illustrations. For example, <answer> Beijing </answer>. Question: "
    "who sailed the Pequod?\n"
)
"""`make_prefix` in scripts/data_process/qa_search_train_merge.py of PeterGriffinJin/Search-R1."""

PUBLISHED_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{PUBLISHED_QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


def search_r1_renderer() -> Renderer:
    rl = load("grpo_qwen25_7b_search_r1").rl_config
    assert rl.tool_config_path is not None
    schemas = load_toolbox(ROOT / rl.tool_config_path).schemas
    parser = PARSERS[rl.tool_parser_format].for_tools(schemas)
    renderer = Renderer(byte_level(QWEN25_TEMPLATE), rl.prompt_type, schemas, parser)
    check_renderer(renderer, parser)
    return renderer


def test_a_published_row_of_search_r1_becomes_exactly_the_published_prompt(tmp_path: Path) -> None:
    row = {
        "id": "train_7",
        "question": "who sailed the Pequod?",
        "golden_answers": ["Captain Ahab", "Ahab"],
        "data_source": "nq",
        "prompt": [{"role": "user", "content": PUBLISHED_QUESTION}],
        "ability": "fact-reasoning",
        "reward_model": {"ground_truth": {"target": ["Captain Ahab", "Ahab"]}, "style": "rule"},
        "extra_info": {"index": 7, "split": "train"},
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    overrides = [f"input={tmp_path}/train.jsonl", f"output_prefix={tmp_path}/rows"]
    (prompt,) = load_prompts(preprocess(load_dataset_config("datasets/search_r1", overrides)))
    renderer = search_r1_renderer()
    assert renderer.decode(renderer.render_prompt(prompt.messages)) == PUBLISHED_PROMPT


def test_a_bare_question_gets_the_same_instructions() -> None:
    renderer = search_r1_renderer()
    asked = {"role": "user", "content": "who sailed the Pequod?\n"}
    assert renderer.decode(renderer.render_prompt([asked])) == PUBLISHED_PROMPT


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


PYTHON = """\
#!/usr/bin/env bash
# Writes down what it is asked, and leaves the files that the command would leave.
printf '%s\\n' "${*:3}" >> log
for argument in "$@"; do
    case "$argument" in
        output_prefix=*) mkdir -p dataset; touch "${argument#*=}.parquet" ;;
        megatron_training.output_dir=*) runs="${argument#*=}" ;;
        megatron_training.run_name=*) run="${argument#*=}" ;;
    esac
done
case "$3" in
    sft | train)
        directory="$runs/$run" number=2
        while [[ -d "$directory" ]]; do
            if [[ -f "$directory/summary.json" ]]; then exit 0; fi
            directory="$runs/$run-$number" number=$((number + 1))
        done
        mkdir -p "$directory/checkpoints/step_000125"
        if [[ -f interrupt ]]; then rm interrupt; exit 130; fi
        touch "$directory/summary.json" ;;
esac
"""


class Scripts:
    """A copy of the scripts, with an interpreter that does nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        python = folder / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)

    def run(self, name: str, *arguments: str) -> tuple[int, list[str], str]:
        """Return the exit status, the commands, and what went to stderr."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        command = ["bash", str(self.folder / "scripts" / name), *arguments]
        done = subprocess.run(
            command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.mark.parametrize("size", ["7b", "32b"])
def test_retool_script_runs_both_stages_once(scripts: Scripts, size: str) -> None:
    model, runs = f"models/Qwen2.5-{size.upper()}-Instruct", f"runs/retool_qwen25_{size}"
    (scripts.folder / model).mkdir(parents=True)
    where, auto = (
        f"megatron_training.output_dir={runs} megatron_training.run_name",
        "megatron_training.resume_mode=auto",
    )
    status, commands, _ = scripts.run(f"retool_qwen25_{size}.sh", "megatron_training.train_iters=9")
    assert status == 0
    stages = [
        f"sft --config-name sft_qwen25_{size}_retool actor_config.load={model} {where}=cold_start {auto}",
        f"train --config-name dapo_qwen25_{size}_retool actor_config.load={runs}/cold_start/checkpoints/step_000125 "
        f"{where}=dapo {auto} megatron_training.train_iters=9",
        f"report {runs}/dapo --cold-start {runs}/cold_start",
    ]
    assert commands == [
        *(
            f"preprocess --config-name datasets/{name} output_prefix=dataset/{name}"
            for name in ("math_17k_retool", "retool_sft", "aime_2024", "aime_2025")
        ),
        *stages,
    ]
    assert scripts.run(f"retool_qwen25_{size}.sh", "megatron_training.train_iters=9")[1] == stages


def test_retool_script_goes_on_from_an_interrupted_cold_start(scripts: Scripts) -> None:
    (scripts.folder / "models/Qwen2.5-7B-Instruct").mkdir(parents=True)
    (scripts.folder / "interrupt").touch()
    assert scripts.run("retool_qwen25_7b.sh")[0] == 130
    status, commands, _ = scripts.run("retool_qwen25_7b.sh")
    runs = "runs/retool_qwen25_7b"
    assert status == 0
    assert commands[0].endswith("run_name=cold_start megatron_training.resume_mode=auto")
    assert f"actor_config.load={runs}/cold_start-2/checkpoints/step_000125" in commands[1]


@pytest.mark.parametrize("size", ["7b", "32b"])
def test_search_r1_script_trains_the_base_model(scripts: Scripts, size: str) -> None:
    model, runs = f"models/Qwen2.5-{size.upper()}", f"runs/search_r1_qwen25_{size}"
    (scripts.folder / model).mkdir(parents=True)
    status, commands, _ = scripts.run(f"search_r1_qwen25_{size}.sh")
    assert status == 0
    test_file = "output_prefix=dataset/search_r1_test input=dataset/nq_hotpotqa_test.parquet"
    assert commands == [
        "preprocess --config-name datasets/search_r1 output_prefix=dataset/search_r1",
        f"preprocess --config-name datasets/search_r1 {test_file}",
        f"train --config-name grpo_qwen25_{size}_search_r1 actor_config.load={model} "
        f"megatron_training.output_dir={runs} megatron_training.run_name=grpo megatron_training.resume_mode=auto",
        f"report {runs}/grpo",
    ]


def test_scripts_say_what_is_missing(scripts: Scripts) -> None:
    status, commands, told = scripts.run("search_r1_qwen25_7b.sh")
    assert (status, commands) == (2, [])
    assert told.startswith("models/Qwen2.5-7B: not found. The first lines of ")
    shutil.rmtree(scripts.folder / ".venv")
    for name in ("retool_qwen25_32b.sh", "dapo_trainer_qwen25_7b_multi_turn.sh"):
        assert scripts.run(name)[::2] == (
            2,
            ".venv: no environment found. Create it: bash scripts/setup.sh cuda\n",
        )
