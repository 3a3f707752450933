"""What holds in every test: strict JAX, eight virtual devices, seeded keys."""

import gc
import os
import tempfile
import zlib
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Here already, for the examples in docstrings and for what a whole module shares.
jax.config.update("jax_disable_most_optimizations", True)

# The tests compile many small programs, which are not worth cutting into parts. JAX
# 0.10 has two generators of code, and the older one compiles them in half the time. JAX
# 0.12 has one, and ends on the flag.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__[:2] == (0, 10):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def pytest_configure(config: pytest.Config) -> None:
    """Compile a program once for all workers, which inherit the folder's name."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(
            prefix="fad-programs-", ignore_cleanup_errors=True
        )
        config.add_cleanup(folder.cleanup)
        patch = pytest.MonkeyPatch()
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder.name)
        config.add_cleanup(patch.undo)
    folder_name = os.environ["JAX_COMPILATION_CACHE_DIR"]
    jax.config.update("jax_compilation_cache_dir", folder_name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end: modules, and thousands of tests."""
    gc.collect()
    gc.freeze()


class GetKey:
    """Give a new random key at each call; the repr shows how to get the same ones."""

    def __init__(self, seed: int):
        self.seed = seed
        self.calls = 0

    def __call__(self) -> jax.Array:
        self.calls += 1
        return jax.random.fold_in(jax.random.key(self.seed), self.calls)

    def __repr__(self) -> str:
        return f"GetKey(FAD_TEST_SEED={self.seed})"


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> GetKey:
    """Random keys, other ones in each test and the same ones in each run.

    Another seed: ``FAD_TEST_SEED=7 make test``.
    """
    default = zlib.crc32(request.node.name.encode())
    return GetKey(int(os.environ.get("FAD_TEST_SEED", default)))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What ``fad.jit`` remembers on disk is the test run's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def quick() -> bool:
    """Let XLA optimise little: what is compared is the program, and it runs once.

    Where the compiled program itself is looked at, a fixture of this name turns it off.
    """
    return True


@pytest.fixture(autouse=True)
def _optimisations(quick: bool | None) -> Iterator[None]:
    if quick:
        yield
        return
    _compile_for_use(True)
    yield
    _compile_for_use(False)


def _compile_for_use(on: bool) -> None:
    """Optimise, and compile each program rather than read it from the folder."""
    jax.config.update("jax_disable_most_optimizations", not on)
    jax.config.update("jax_enable_compilation_cache", not on)
    compilation_cache.reset_cache()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision in this test alone."""
    with jax.enable_x64(True):
        yield
