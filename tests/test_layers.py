"""Checks the layering: a file of dfpo_jax imports only from files listed above it."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

import dfpo_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent

# One layer per line. Files that share a line may not import one another. A package's name stands
# for its __init__.py, (root) for that of dfpo_jax, and FOLDER.* for all files of the folder that no
# other line names: a new part needs no line here.
LAYERS = """
(root)
types settings metric published_files template_dates
sharding memory trial
ops.checks
ops.masking
ops.histograms
ops.ode
ops.returns
ops.advantages
ops.targets
ops.flow_matching
ops.risk
ops.quantiles
ops.policy_gradients
ops.divergences ops.sequences ops.trust_regions
ops.flowrl
ops.divergences
ops.channel ops.units
ops
models.lora
models.config
models.tiled_attention models.rope models.hf_config models.generation
models.attention
models.transformer models.packing
models.decode
models.value_flow
models.value_heads
models.partition
models
critics.interface critics.units
critics.flow_inference
critics.tails
critics.flow_losses critics.ensemble
critics.check
critics.flow
critics.*
critics
advantages.interface
advantages.gae
advantages.check
advantages.*
advantages
objectives.interface
objectives.check
objectives.*
objectives
models.weights models.vocabulary
models.hf models.gguf
models.gguf_tokenizer
models.pretrained
tokenizers control_tokens
chat
tasks.base
tasks.dress
tasks.numbers
tasks.choices tasks.texts
tasks.extraction tasks.verifier_pool tasks.verifier_worker tasks.presets tasks.rows
tasks.judges tasks.fields tasks.multiple_choice
tasks.verifiers
tasks.reasoning_gym tasks.jsonl
tasks
rewards.interface plans.interface
rewards.check rewards.classifier plans.check
rewards.* plans.*
rewards plans
rollout.sampling rollout.stops rollout.prompts rollout.verify
rollout.prefill
rollout.generate
rollout.sampler rollout.demonstrations
rollout.collect rollout.partial
rollout
algorithms.config algorithms.presets
algorithms.importance algorithms.interface algorithms.needs
algorithms.trunk
algorithms.units algorithms.sft algorithms.warmup algorithms.confidence
algorithms.whitening
algorithms.old_policy
algorithms.scores
algorithms.compose
algorithms
contracts.measure
contracts.*
contracts
training.sources training.moved_settings training.settings_dict training.unread
training.step_size training.config_checks training.noise_metrics training.rollout_metrics
training.speed
training.config_argument
training.config_keys
training.config training.config_diff
training.compilation_cache
training.json_lines training.command_line
training.optim training.metrics training.run_tokens training.curves
training.preemption training.failures training.profile training.lock training.checksums
training.distributed
training.gradients
training.update
training.learner training.checkpoint training.evaluate training.charts
training.value_model training.page training.glossary
training.evaluation_sets
training.report training.run training.programs
training.run_data
training.restore training.workdir training.check training.run_log training.warm_start
training.ahead
training.initial
training.rollouts
training.loop
training
"""
PARTS = ("critics", "advantages", "objectives")
FILES = sorted((ROOT / "dfpo_jax").rglob("*.py"))


def layer_name(path):
    """`dfpo_jax/ops/ode.py` -> "ops.ode", `dfpo_jax/ops/__init__.py` -> "ops"."""
    parts = path.relative_to(ROOT / "dfpo_jax").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "(root)"


def ranks(names):
    """The layer of every file."""
    lines = [line.split() for line in LAYERS.split("\n")]
    named = {name for line in lines for name in line}
    found = {}
    for rank, line in enumerate(lines):
        for name in line:
            inside = [x for x in names - named if name.endswith(".*") and x.startswith(name[:-1])]
            found |= dict.fromkeys(inside if name.endswith(".*") else [name], rank)
    return found


NAMES = {layer_name(path) for path in FILES}
RANK = ranks(NAMES)


def imported_names(name, source, is_package=False):
    """Names of the files of dfpo_jax that `source` imports, anywhere in it."""
    package = ["dfpo_jax", *([] if name == "(root)" else name.split("."))]
    package = package if is_package else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                is_file = inner.removeprefix("dfpo_jax.") in NAMES | set(RANK)
                found.add(inner if is_file else module)
    ours = {module for module in found if module.split(".")[0] == "dfpo_jax"}
    return {module.removeprefix("dfpo_jax").removeprefix(".") or "(root)" for module in ours}


def violations(name, source, is_package=False):
    """One sentence per import that the layering forbids."""
    found = []
    for other in sorted(imported_names(name, source, is_package)):
        if other not in RANK:
            found.append(f"{name} imports {other}, which is in no layer")
        elif RANK[other] >= RANK[name]:
            found.append(f"{name} imports {other}, which is not above it")
    return found


def test_every_file_has_a_layer_and_every_name_a_file():
    assert set(RANK) == NAMES


@pytest.mark.parametrize("path", FILES, ids=layer_name)
def test_file_imports_only_from_layers_above(path):
    name = layer_name(path)
    assert name in RANK, f"{name} is in no layer: give it a place in LAYERS of {__file__}"
    found = violations(name, path.read_text(), path.name == "__init__.py")
    assert not found, "; ".join(found)


def test_parts_on_the_device_know_no_transformer():
    names = [name for name in NAMES if name.partition(".")[0] in PARTS]
    for name in names:
        path = ROOT / "dfpo_jax" / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for other in imported_names(name, path.read_text(), path.name == "__init__.py"):
            assert other != "models.transformer", name
            assert other.partition(".")[0] not in ("algorithms", "rollout", "training"), name


@pytest.mark.parametrize(
    ("name", "source", "culprit"),
    [
        ("ops.masking", "from dfpo_jax.ops.ode import integrate", "ops.ode"),
        ("ops.ode", "from dfpo_jax import ops", "ops"),
        ("ops.ode", "import dfpo_jax.models.config as c", "models.config"),
        ("ops.ode", "def f():\n    from dfpo_jax.training import loop", "training.loop"),
        ("models.config", "from . import attention", "models.attention"),
        ("models.config", "from .attention import attention", "models.attention"),
        ("types", "from .sharding import create_mesh", "sharding"),
        ("critics.scalar", "from dfpo_jax.critics.quantile import Quantile", "critics.quantile"),
        ("critics.flow", "from dfpo_jax.critics import Critics", "critics"),
        ("training.loop", "from dfpo_jax.surprise import x", "surprise"),
        ("types", "from dfpo_jax.types import Array", "types"),
    ],
)
def test_a_forbidden_import_is_seen(name, source, culprit):
    (sentence,) = violations(name, source)
    assert sentence.startswith(f"{name} imports {culprit}, ")


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("ops.ode", "import jax.ops\nfrom os import path", set()),
        (
            "critics.flow",
            "from dfpo_jax import ops\nfrom . import interface",
            {"ops", "critics.interface"},
        ),
        ("ops.targets", "from dfpo_jax.ops import masking, ode", {"ops.masking", "ops.ode"}),
        ("training.loop", "from dfpo_jax import __version__", {"(root)"}),
    ],
)
def test_an_allowed_import_is_named_and_passes(name, source, expected):
    assert imported_names(name, source) == expected
    assert violations(name, source) == []


@pytest.mark.parametrize("path", sorted((ROOT / "dfpo_jax" / "ops").glob("*.py")), ids=layer_name)
def test_ops_use_no_jit_and_no_model_library(path):
    words = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            words |= {word for name in names for word in name.split(".")}
    assert not words & {"jit", "pjit", "flax", "optax", "ml_collections", "transformers"}


def test_version_is_that_of_the_package_metadata():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert metadata["project"]["version"] == dfpo_jax.__version__


def test_a_run_waits_for_no_import_that_it_may_not_need():
    """PyTorch and reasoning-gym take seconds."""
    code = (
        "import sys, dfpo_jax.training.run, dfpo_jax.training.loop\n"
        "print(*{'torch', 'reasoning_gym'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
