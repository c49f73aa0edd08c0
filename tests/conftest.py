"""Fixtures shared by all tests: a private home, a tiny LLM, a small catalog."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker a core: more threads would only wait for each other, and sums in another order are other numbers.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.forks import Forks

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED = (Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
CASES = SHARED.parent / "cases"
BROWSER = Path(__file__).parent / "browser"


@pytest.fixture(autouse=True)
def _private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAREC_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("EAREC_REGISTRY", raising=False)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs `earec` in processes of its own that need not import it."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama."""
    from earec_core.testing import tiny_backbone

    return tiny_backbone(tmp_path_factory.mktemp("tiny-llm"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets (../shared/data) are not here")
    return SHARED


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small inputs that are hard to read; its README says what is right."""
    if not CASES.is_dir():
        pytest.skip("the hard inputs (../shared/cases) are not here")
    return CASES


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random BERT with a tokenizer of words and letters, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "pen", "lamp", *map(str, range(10)), *letters]
    vocabulary = {word: i for i, word in enumerate([*words, *(f"##{letter}" for letter in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("tiny-encoder")
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts of `tests/browser` and the Chromium that npm has; skipped where npm has none."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm here, which bring Chromium")
    folder = shutil.copytree(BROWSER, tmp_path_factory.mktemp("browser") / "scripts")
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot fetch Chromium here: {done.stderr.strip()[:200]}")
    return folder
