"""`rl evaluate --endpoint`: prompts, tools and rewards of a run, with a server in the place of the engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rl.__main__ import main
from rl.config.load import load_config
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.observability.log import console
from rl.remote.launch import connect
from rl.types import Prompt, Sampling, StopReason, ToolStatus, Trajectory
from tests.unit.remote.conftest import Answer, ChatServer, chat, in_turn

ROOT = Path(__file__).resolve().parents[3]
CALL = ("calculator", '{"expression": "2+2"}')
YAML = """
megatron_training:
  eval_data_path: {sums: sums.jsonl, riddles: riddles.jsonl}
  output_dir: runs
  run_name: first
generate_config:
  max_num_seqs: 4
  sampling_config: {max_tokens: 64}
rl_config:
  multi_turn_enable: true
  tool_config_path: configs/tools/calculator.yaml
  prompt_type: qwen_retool
  max_total_response_length: 100
  trajectory_timeout: 30.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console(), "stderr", False)  # put back after `--json -`
    (tmp_path / "run.yaml").write_text(YAML)
    for name, questions in (("sums", {"2+2?": "4", "3+3?": "6"}), ("riddles", {"even prime?": "2"})):
        rows = [
            {"messages": [{"role": "user", "content": text}], "ground_truth": truth, "data_source": name}
            for text, truth in questions.items()
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def config(folder: Path) -> Config:
    return load_config("run", (), folder)


def run_one(config: Config, server: ChatServer, answer: Answer, *, num_samples: int = 1) -> list[Trajectory]:
    """Trajectories of one question."""
    server.answer = answer
    prompt = Prompt("sums-1", [{"role": "user", "content": "2+2?"}], "4", "sums", evaluation_set="sums")
    with connect(config, server.endpoint, [prompt]) as rollouts:
        (group,) = rollouts.evaluate([prompt], Sampling(0.0, 64), num_samples)
    return group.record


async def by_question(body: dict[str, Any]) -> web.StreamResponse:
    """Calls the calculator for 2+2, and is wrong about everything else."""
    last = body["messages"][-1]
    if last["role"] == "user" and last["content"].startswith("2+2?"):
        return chat("", CALL, finish="tool_calls", tokens=(40, 10))
    return chat(f"\\boxed{{{last['content'] if last['role'] == 'tool' else 5}}}", tokens=(60, 6))


def test_evaluate_runs_tools_and_writes_figures_of_each_set(
    folder: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = by_question
    command = ["evaluate", "--config-dir", str(folder), "--config-name", "run", "--endpoint", server.url]
    assert main([*command, "--model", "m", "--json", "out.json"]) == 0
    shown = capsys.readouterr().out
    assert "evaluation after step 0, sums: accuracy 0.500 on 2 questions" in shown
    assert "evaluation after step 0, all: accuracy 0.333 on 3 questions" in shown
    found = json.loads((folder / "out.json").read_text())
    assert [(row["name"], row["mean"]["value"]) for row in found["figures"]] == [
        ("all", pytest.approx(1 / 3)),
        ("sums", 0.5),
        ("riddles", 0.0),
    ]
    assert found["model"] == f"m at {server.url}"
    assert found["metrics"]["val-core/sums/acc/mean@1"] == 0.5
    records = [json.loads(line) for line in (folder / "runs/first/trajectories/eval_000000.jsonl").open()]
    assert [(r["id"], r["evaluation_set"]) for r in records] == [
        ("sums-1/0", "sums"),
        ("sums-2/0", "sums"),
        ("riddles-1/0", "riddles"),
    ]
    assert records[0]["turns"][0]["results"][0]["text"] == "4"
    assert (records[0]["num_sampled"], records[0]["response_length"]) == (16, 26)  # 10 + 6, and 60 + 6 - 40
    # a second model answers the other question too; compared with the first question by question
    server.answer = in_turn(lambda: chat("\\boxed{6}"))
    against = ["--against", "runs/first", "megatron_training.run_name=second", "--json", "-"]
    assert main([*command, "--model", "other", *against]) == 0
    output = capsys.readouterr()
    compared = json.loads(output.out)["comparison"]
    assert [change["question"] for change in compared["all"]["gained"]] == ["sums-2"]
    assert [change["question"] for change in compared["all"]["lost"]] == ["sums-1"]
    assert list(compared) == ["sums", "riddles", "all"]
    assert "gained 1 of 3: sums-2" in output.err
    assert main(["report", "runs/second", "--against", "runs/first"]) == 0
    assert "to read one: python -m rl view runs/second --eval --step 0 --id sums-1/0" in capsys.readouterr().err


def test_evaluate_against_other_questions_is_refused_before_it_runs(
    folder: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--config-dir", str(folder), "--config-name", "run", "--endpoint", server.url]
    assert main([*command, "--model", "m"]) == 0
    fewer = ["megatron_training.run_name=second", "megatron_training.eval_data_path=sums.jsonl"]
    assert main([*command, "--model", "m", "--against", "runs/first", *fewer]) == 0
    assert "questions left out, since only one of the two has them: 1\n" in capsys.readouterr().out
    num_asked = len(server.bodies)
    others = ["megatron_training.run_name=third", "megatron_training.eval_data_path=riddles.jsonl"]
    assert main([*command, "--model", "m", "--against", "runs/second", *others]) == 2
    assert "got 2 and 1 with 0 in common; only one has " in capsys.readouterr().err
    assert len(server.bodies) == num_asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--endpoint", "host:8000", "--model", "m"],
            "--endpoint: must begin with http:// or https://, got 'host:8000'",
        ),
        (["--endpoint", "http://127.0.0.1:9/v1"], "--model: must name a model of the server"),
        (
            ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"],
            "--endpoint: no answer from http://127.0.0.1:9/v1/models",
        ),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "--api-key-env", "NO_KEY"],
            "--api-key-env: no variable of this",
        ),
        (["--api-key-env", "HOME"], "--api-key-env: has no effect without --endpoint"),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "rl_config.environment=x.py:Y"],
            "rl_config.environment: needs the tokens of an engine, got x.py:Y",
        ),
        (
            [
                *("--endpoint", "http://h/v1", "--model", "m"),
                *("rl_config.agent_function=x.py:f", "rl_config.tool_config_path=null"),
            ],
            "rl_config.agent_function: needs the tokens of an engine, got x.py:f",
        ),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "megatron_training.eval_data_path=null"],
            "megatron_training.eval_data_path: must name evaluation sets, got nothing",
        ),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "megatron_training.eval_data_path.sums=none.jsonl"],
            "megatron_training.eval_data_path.sums: none.jsonl: the data file does not exist",
        ),
    ],
)
def test_evaluate_tells_what_is_wrong(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--config-dir", str(folder), "--config-name", "run", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_evaluate_tells_where_json_and_comparison_cannot_be(
    folder: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--config-dir", str(folder), "--config-name", "run", "--endpoint", server.url]
    assert main([*command, "--model", "m", "--json", "none/out.json"]) == 2
    assert "--json: no folder for the file, got 'none/out.json'" in capsys.readouterr().err
    assert main([*command, "--model", "m", "--against", "nothing.jsonl"]) == 2
    assert "nothing.jsonl: no such file of trajectories" in capsys.readouterr().err


def test_a_call_and_its_result_go_back_in_openais_form(config: Config, server: ChatServer) -> None:
    (trajectory,) = run_one(config, server, by_question)
    first, second = server.bodies
    assert first["messages"][0] == {"role": "system", "content": "You are a helpful assistant."}
    assert first["messages"][1]["content"].startswith("2+2?\nThe answer format must be: \\boxed{")
    assert [tool["function"]["name"] for tool in first["tools"]] == ["calculator"]
    function = {"name": "calculator", "arguments": '{"expression": "2+2"}'}
    assert second["messages"][2:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "id-0", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "4", "tool_call_id": "id-0"},
    ]
    assert first["seed"] != second["seed"]
    assert (first["max_tokens"], second["max_tokens"]) == (64, 64)
    assert (trajectory.stop_reason, trajectory.score) == (StopReason.FINISHED, 1.0)


def test_calls_in_a_prompt_get_ids(config: Config, server: ChatServer) -> None:
    call = {"function": {"name": "calculator", "arguments": {"expression": "1+1"}}}
    shown = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    prompt = Prompt("sums-1", shown, "4", "sums", evaluation_set="sums")
    with connect(config, server.endpoint, [prompt]) as rollouts:
        rollouts.evaluate([prompt], Sampling(0.0, 64))
    sent = server.bodies[0]["messages"][1:]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["prompt-2-0", "prompt-2-1"]
    assert [call["function"]["arguments"] for call in sent[1]["tool_calls"]] == ['{"expression": "1+1"}'] * 2
    assert [message.get("tool_call_id") for message in sent[2:4]] == ["prompt-2-0", "prompt-2-1"]
    assert "id" not in call  # the prompt itself stays as it is


def test_malformed_arguments_are_told_to_the_model(config: Config, server: ChatServer) -> None:
    answer = in_turn(chat("", ("calculator", '{"expression": ')), chat("\\boxed{4}"))
    (trajectory,) = run_one(config, server, answer)
    (result,) = trajectory.turns[0].results
    assert result.status is ToolStatus.PARSE_ERROR
    assert "not valid JSON" in server.bodies[1]["messages"][-1]["content"]
    assert server.bodies[1]["messages"][-2]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert trajectory.score == 1.0


def test_a_call_beyond_the_limit_ends_the_trajectory(config: Config, server: ChatServer) -> None:
    (trajectory,) = run_one(config, server, in_turn(lambda: chat("", CALL)))
    assert (trajectory.stop_reason, len(trajectory.turns)) == (StopReason.TOOL_LIMIT, 2)  # max_tool_calls is 1


def test_the_response_has_its_budget(config: Config, server: ChatServer) -> None:
    answer = in_turn(chat("", CALL, tokens=(40, 30)), chat("\\boxed{4}", finish="length", tokens=(80, 64)))
    config.rl_config.max_total_response_length = 70
    (trajectory,) = run_one(config, server, answer)
    assert [body["max_tokens"] for body in server.bodies] == [64, 40]
    assert (trajectory.stop_reason, trajectory.response_length) == (StopReason.LENGTH, 104)


def test_a_result_is_cut_to_four_characters_a_token(config: Config, server: ChatServer) -> None:
    config.rl_config.max_tool_response_length = 5
    call = ("calculator", '{"expression": "10**60"}')
    (trajectory,) = run_one(config, server, in_turn(chat("", call), chat("\\boxed{4}")))
    (result,) = trajectory.turns[0].results
    assert result.is_truncated
    assert len(result.text) <= 20


def test_reasoning_is_a_thought_and_is_not_sent_back(config: Config, server: ChatServer) -> None:
    message = {"role": "assistant", "content": "\\boxed{4}", "reasoning_content": "is it \\boxed{5}?"}
    answer = web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})
    (trajectory,) = run_one(config, server, in_turn(answer))
    assert trajectory.turns[0].text == "<think>is it \\boxed{5}?</think>\n\\boxed{4}"
    assert trajectory.score == 1.0


@pytest.mark.parametrize(
    ("answer", "stop_reason", "failure"),
    [
        (lambda: web.Response(status=400, text="no tools here"), StopReason.ENGINE_FAILED, "refused, no tools here"),
        (
            lambda: web.Response(status=400, text="This model's maximum context length is 64 tokens"),
            StopReason.LENGTH,
            None,
        ),
    ],
)
def test_a_refusal_is_a_stop_reason(
    config: Config, server: ChatServer, answer: Any, stop_reason: StopReason, failure: str | None
) -> None:
    # the second trajectory is answered, so that the evaluation does not fail as a whole
    trajectories = run_one(config, server, in_turn(answer, lambda: chat("\\boxed{4}")), num_samples=2)
    (refused,) = [t for t in trajectories if t.stop_reason is not StopReason.FINISHED]
    assert refused.stop_reason is stop_reason
    assert failure is None or failure in str(refused.failure)


def test_a_silent_server_is_left_at_the_deadline(config: Config, server: ChatServer) -> None:
    async def silent_once(body: dict[str, Any]) -> web.StreamResponse:
        if len(server.bodies) == 1:
            await asyncio.Event().wait()
        return chat("\\boxed{4}")

    config.rl_config.trajectory_timeout = 0.3
    trajectories = run_one(config, server, silent_once, num_samples=2)
    assert sorted(t.stop_reason for t in trajectories) == [StopReason.DEADLINE, StopReason.FINISHED]
    assert [t.score for t in trajectories if t.stop_reason is StopReason.DEADLINE] == [None]


def test_an_evaluation_without_any_answer_fails(config: Config, server: ChatServer) -> None:
    with pytest.raises(RolloutError, match=r"no trajectory got an answer. The first: .*refused, gone"):
        run_one(config, server, in_turn(lambda: web.Response(status=404, text="gone")), num_samples=2)


def test_no_more_requests_run_at_once_than_configured(config: Config, server: ChatServer) -> None:
    gate = asyncio.Event()

    async def answer(body: dict[str, Any]) -> web.StreamResponse:
        if server.num_running == config.generate_config.max_num_seqs:
            gate.set()
        await gate.wait()
        return chat("\\boxed{4}")

    run_one(config, server, answer, num_samples=12)
    assert len(server.bodies) == 12
    assert server.most_running == 4
