import sys
from pathlib import Path

from rl.config.schema import Config, Device
from rl.inference.environment import engine_environment


def test_engine_environment_binds_the_engine_to_its_cores():
    config = Config()
    config.megatron_training.device = Device.CPU
    variables = engine_environment(config, (2, 3), Path("/tmp/run"))
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "2,3"
    assert variables["HF_HUB_OFFLINE"] == "1"
    if (Path(sys.prefix) / "lib/libiomp5.so").exists():
        assert variables["LD_PRELOAD"].endswith("libiomp5.so")


def test_engine_environment_leaves_cuda_engines_unbound():
    config = Config()
    config.megatron_training.device = Device.CUDA
    variables = engine_environment(config, (0, 1), Path("/tmp/run"))
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD"} & set(variables)
