"""The runtime half works where there is no torch, and nothing reaches for a network when imported."""

import json

import pytest

# Put before any code: torch cannot be imported, and no socket can be opened.
WALLED = """
import importlib.abc, socket, sys

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(*arguments, **keywords):
    raise RuntimeError("something reached for the network")

sys.meta_path.insert(0, Wall())
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture
def walled(run_python, tmp_path):
    """Runs code where torch is not and the network is not; checks that it ended well."""

    def run(code, *arguments, status=0):
        done = run_python(WALLED + code, tmp_path, *arguments)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_the_wall_stands(run_python, tmp_path):
    assert "No module named 'torch'" in run_python(WALLED + "import torch", tmp_path).stderr
    reach = "import socket; socket.create_connection(('localhost', 9))"
    assert "reached for the network" in run_python(WALLED + reach, tmp_path).stderr


def test_the_runtime_half_imports_without_torch(walled):
    done = walled(
        "import cliplet, cliplet.cli, cliplet.config, cliplet.recipes, cliplet.model_folder, cliplet.model_card\n"
        "import cliplet.console, cliplet.drawing, cliplet.errors, cliplet.page, cliplet.charts, cliplet.results\n"
        "import cliplet.data.readers, cliplet.data.images, cliplet.data.inspection, cliplet.data.scenes\n"
        "import cliplet.evaluation.report, cliplet.runtime.encoder, cliplet.runtime.engines\n"
        "import cliplet.evaluation.protocol, cliplet.evaluation.comparison_page, cliplet.evaluation.embeddings\n"
        "import cliplet.evaluation.zero_shot, cliplet.evaluation.few_shot, cliplet.evaluation.show\n"
        "import cliplet.library.adding, cliplet.library.duplicates, cliplet.library.repair, cliplet.library.telling\n"
        "import cliplet.serve.app, cliplet.serve.server, cliplet.cli.serve, cliplet.cli.library\n"
        "assert cliplet.load and cliplet.Encoder and cliplet.evaluate and cliplet.ClipletError and cliplet.Library\n"
        "from cliplet.evaluation import retrieval_metrics\n"
        "import numpy as np\n"
        "metrics = retrieval_metrics(np.eye(3), np.eye(3), np.arange(3))\n"
        "assert metrics['image_to_text_R@1'] == 100.0\n"
        "print(cliplet.__version__, sorted(set(sys.modules) & {'torch', 'timm', 'transformers'}))"
    )
    assert done.stdout.strip().endswith("[]")


def test_a_library_is_made_searched_and_described_without_torch(walled, exported_model, tmp_path):
    from PIL import Image

    for number in range(3):
        Image.effect_noise((40, 40), 90 + number).save(tmp_path / f"{number}.png")
    code = """
from cliplet.cli import main
assert main(["index", sys.argv[1], "--library", "l.library", "-m", sys.argv[2]]) == 0
assert main(["search", "l.library", "a", "boat", "--json"]) == 0
from cliplet.library import Library
from cliplet.serve.app import create_app
from cliplet.serve.settings import Settings
assert create_app({"l": Library.open("l.library")}, Settings()).routes
print(sorted(set(sys.modules) & {"torch", "timm", "transformers"}))
"""
    done = walled(code, tmp_path, exported_model)
    assert '"cliplet-search"' in done.stdout and done.stdout.strip().endswith("[]")


def test_import_cliplet_is_light(walled):
    done = walled("import cliplet; print([m for m in ('numpy', 'pydantic', 'PIL', 'yaml') if m in sys.modules])")
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "cliplet makes small CLIPs"),
        (["recipes"], "finetune"),
        (["recipes", "demo"], "batch_size"),
        (["train", "demo", "--help"], "--optim.image-lr"),
        (["evaluate", "--help"], "--quarantine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_commands_without_torch(walled, words, shown):
    done = walled("from cliplet.cli import main; sys.exit(main(sys.argv[1:]))", *words)
    assert shown in done.stdout


def test_inspect_without_torch(walled, data_set, saved_model):
    code = "from cliplet.cli import main; sys.exit(main(sys.argv[1:]))"
    assert json.loads(walled(code, "inspect", data_set, "--json").stdout)["pictures"] == 12
    assert json.loads(walled(code, "inspect", saved_model, "--json").stdout)["parameters"] > 100_000


def test_load_without_torch_says_what_to_install(walled, saved_model):
    done = walled(
        "import cliplet\n"
        "from cliplet.errors import ModelError\n"
        "try:\n    cliplet.load(sys.argv[1])\nexcept ModelError as error:\n    print(error)",
        saved_model,
    )
    assert "needs the package torch" in done.stdout and "pip install -e '.[train]'" in done.stdout


@pytest.mark.parametrize("words", [["train", "demo"], ["demo"]], ids=" ".join)
def test_training_without_torch_says_what_to_install(walled, words):
    done = walled("from cliplet.cli import main; sys.exit(main(sys.argv[1:]))", *words, status=1)
    assert done.stderr.startswith("error: ") and "torch" in done.stderr and "[train]" in done.stderr


def test_evaluate_without_torch_says_what_to_install(walled, saved_model, data_set):
    code = "from cliplet.cli import main; sys.exit(main(sys.argv[1:]))"
    done = walled(code, "evaluate", saved_model, data_set, status=1)
    assert done.stderr.startswith("error: ") and "[train]" in done.stderr


def test_public_names():
    import cliplet

    for name in cliplet.__all__:
        assert getattr(cliplet, name) is not None
    assert set(cliplet.__all__) == set(dir(cliplet))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cliplet.nonsense
