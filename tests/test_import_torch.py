"""Imported PyTorch weights: key layout, values as PyTorch computes them, runs that score and train take.

The recorded arrays (tests/import_torch.npz) come from tools/bench/record.py: small networks in the published key layout with what
PyTorch gave for random inputs. Where torch is installed it is asked again at the published widths.
"""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from cacjax.training.workdir import load
from tools import import_torch

HERE = pathlib.Path(__file__).parent
RECORDED = HERE / "import_torch.npz"
KINDS = ("generator", "dilated", "neck", "critic", "undilated")


@pytest.fixture(scope="module")
def recorded():
    """{kind: (state dict, x, y)}."""
    with np.load(RECORDED) as arrays:
        everything = dict(arrays)
    parts = {kind: {k.removeprefix(f"{kind}/"): v for k, v in everything.items() if k.startswith(f"{kind}/")} for kind in KINDS}
    return {kind: (part, part.pop("x").astype(np.float32) / 2, part.pop("y")) for kind, part in parts.items()}


def write(path, state, x=None, y=None):
    """Save a state dict, and the arrays to check, as the command line takes them."""
    np.savez(path / "weights.npz", **state)
    if x is not None:
        np.savez(path / "arrays.npz", x=x, y=y)
    return str(path / "weights.npz"), str(path / "arrays.npz")


def call(*arguments):
    """Run the tool as a user does."""
    program = HERE.parent / "tools" / "import_torch.py"
    return subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_compute_what_torch_recorded(recorded, kind):
    state, x, y = recorded[kind]
    ours = import_torch.compute(kind, import_torch.convert(kind, state), x, y.shape)
    assert np.abs(y).max() > 0.01
    np.testing.assert_allclose(ours, y, atol=import_torch.TOLERANCE * 0.1)


def test_errors_name_key_found_and_expected(recorded):
    state = dict(recorded["neck"][0])
    state["extra.weight"] = np.zeros(3)
    del state["conv2.bias"]
    with pytest.raises(ValueError, match=r"conv2.bias: missing(.|\n)*extra.weight: found \(3,\), expected no such key"):
        import_torch.convert("neck", state)
    state = dict(recorded["generator"][0])
    state["subnets.1.4.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match=r"subnets.1.4.bias: found \(7,\), expected \(4,\)"):
        import_torch.convert("generator", state)


def test_a_dilated_network_becomes_a_run_and_its_parts_change_it(recorded, tmp_path):
    state, x, y = recorded["dilated"]
    weights, arrays = write(tmp_path, state, x, y)
    source = tmp_path / "source"
    done = call("dilated", weights, "--out", source, "--check", arrays)
    assert done.returncode == 0 and "largest difference" in done.stdout, done.stderr
    config, _, before, *_ = load(source)
    assert config.task == "lessmann" and before.step == config.steps and config.model.width == 4 and config.model.stored == "float16"
    jax.tree.map(np.testing.assert_array_equal, before.nets["detector"].params["params"], import_torch.convert("dilated", state))

    weights, _ = write(tmp_path, recorded["generator"][0])
    adapted = tmp_path / "adapted"
    assert "give --source" in call("generator", weights, "--out", adapted).stderr and not adapted.exists()
    done = call("generator", weights, "--out", adapted, "--source", source)
    assert done.returncode == 0, done.stderr
    weights, _ = write(tmp_path, recorded["critic"][0])
    refused = call("critic", weights, "--out", adapted)  # the run's critic has the published widths
    assert refused.returncode == 1 and "another critic" in refused.stderr
    config, _, state, *_ = load(adapted)
    expected = import_torch.convert("generator", recorded["generator"][0])
    assert config.task == "uda" and state.step == 0 and config.stages.source.workdir == str(source)
    assert (config.model.stored, config.critic.updates, config.generator.updates) == ("float16", 200, 10)  # as the published code
    assert config.supervision.double_softmax_main
    jax.tree.map(np.testing.assert_array_equal, state.nets["generator"].params, expected)
    heads = state.nets["heads"].params["classifier"]
    jax.tree.map(np.testing.assert_array_equal, heads, before.nets["detector"].params["params"]["classifier"])


def test_a_second_stage_becomes_a_run_upon_its_first_stage(recorded, tmp_path):
    state, x, y = recorded["undilated"]
    weights, arrays = write(tmp_path, state, x, y)
    out, source = tmp_path / "second", tmp_path / "source"
    params = import_torch.convert("undilated", state)
    with pytest.raises(ValueError, match="give --source"):
        import_torch.make_run("undilated", params, out, None)
    first = import_torch.convert("dilated", recorded["dilated"][0])
    import_torch.save(source, *import_torch.make_run("dilated", first, source, None))
    done = call("undilated", weights, "--out", out, "--source", source, "--check", arrays)
    assert done.returncode == 0 and "largest difference" in done.stdout, done.stderr
    config, _, run, *_ = load(out)
    net = run.nets["second"]
    assert config.task == "second" and run.step == config.steps and tuple(config.model.widths) == (2, 3, 4, 2)
    jax.tree.map(np.testing.assert_array_equal, {"params": net.params, "batch_stats": net.stats}, import_torch.variables(params))
    jax.tree.map(np.testing.assert_array_equal, run.stages["first"].nets["detector"].params["params"], first)
    assert config.stages.first.workdir == str(source) and not any(net.opt for net in run.stages["first"].nets.values())


def test_a_part_is_checked_alone(recorded, tmp_path):
    """A generator needs no source network to be compared, and nothing is written."""
    state, x, y = recorded["generator"]
    weights, arrays = write(tmp_path, state, x, y)
    done = call("generator", weights, "--check", arrays)
    assert done.returncode == 0 and "largest difference" in done.stdout, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arrays.npz", "weights.npz"]
    write(tmp_path, state, x, y + 0.01)
    assert call("generator", weights, "--check", arrays).returncode == 1
    refused = call("generator", weights)
    assert refused.returncode == 2 and "give --out DIR, --check ARRAYS.npz or both" in refused.stderr


def test_without_torch_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"^error: reading .*G.pth needs PyTorch: pip install torch .*\.npz of the same keys\)$"):
        import_torch.read(tmp_path / "G.pth")


def test_a_failed_check_writes_nothing(recorded, tmp_path):
    state, x, y = recorded["dilated"]
    weights, arrays = write(tmp_path, state, x, y + 0.01)
    done = call("dilated", weights, "--out", tmp_path / "run", "--check", arrays)
    assert done.returncode == 1 and "expected at most 0.0001" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arrays.npz", "weights.npz"]


def test_published_widths_and_a_padded_slice_against_torch(tmp_path):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(HERE.parent / "tools" / "bench"))
    import uda_torch

    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    network = uda_torch.Dilated().eval()
    path = tmp_path / "dilated.pth"
    torch.save(network.state_dict(), path)
    params = import_torch.convert("dilated", import_torch.read(path))
    for side in (155, 642):
        x = rng.normal(0, 0.7, (1, 3, side, side)).astype(np.float32)
        with torch.no_grad():
            features, logits = uda_torch.Generator.forward(network, torch.from_numpy(x)).numpy(), network(torch.from_numpy(x))[0].numpy()
        subnets = {name: value for name, value in params.items() if name.startswith("subnets")}
        np.testing.assert_allclose(import_torch.compute("generator", subnets, x, features.shape), features, atol=1e-4)
        np.testing.assert_allclose(import_torch.compute("dilated", params, x, logits.shape), logits, atol=1e-4)
    critic = uda_torch.Critic()
    torch.save(critic.state_dict(), path)
    x = rng.normal(size=(4, 96, 25, 25)).astype(np.float32)
    with torch.no_grad():
        y = critic(torch.from_numpy(x)).numpy()
    ours = import_torch.compute("critic", import_torch.convert("critic", import_torch.read(path)), x, y.shape)
    np.testing.assert_allclose(ours, y, atol=1e-4)
    second = uda_torch.randomised(uda_torch.Undilated()).eval()
    assert sum(p.numel() for p in second.parameters()) == 956_522
    torch.save(second.state_dict(), path)
    x = rng.uniform(size=(8, 3, 65, 65)).astype(np.float32)
    with torch.no_grad():
        y = second(torch.from_numpy(x)).numpy()
    ours = import_torch.compute("undilated", import_torch.convert("undilated", import_torch.read(path)), x, y.shape)
    np.testing.assert_allclose(ours, y, atol=1e-4)
