"""Experiments: the commands that they run, what they read of an evaluation, intervals, and the files that they write."""

import ast
import importlib
import json
import re
import types

import numpy as np
import pytest

import cacjax.score
from cacjax import train
from cacjax.experiments import cells, commands, ensemble, shipped, uda
from cacjax.experiments import run as experiments
from cacjax.experiments.uda import EXPERIMENTS, SIZES, Column, Network
from cacjax.files.scan import write_image


@pytest.fixture
def calls(monkeypatch):
    """Every command that would run; none does."""
    seen = []
    monkeypatch.setattr(commands, "call", lambda command, output: seen.append(command) or 0)
    return seen


def networks_of(experiment):
    """The networks that its columns name."""
    return {column.network for column in experiment.columns} - {""}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_network_is_trained_and_every_column_scored(experiment, calls, tmp_path):
    commands.train(experiment.networks, SIZES["tiny"], tmp_path, 3)
    trained = [command[command.index("--workdir") + 1] for command in calls]
    wanted = [name for name, network in experiment.networks.items() if network.config]
    assert sorted(trained) == sorted(str(tmp_path / "networks" / name) for name in wanted)
    for command in calls:
        source = [word.split("=")[1] for word in command if word.startswith("--config.stages.source.workdir=")]
        assert all(trained.index(name) < calls.index(command) for name in source), "a source network is trained first"
        assert "--config.seed=3" in command
    assert networks_of(experiment) <= experiment.networks.keys()


def test_words_and_settings_reach_the_command_line(tmp_path):
    network = Network("uda.py", ("tone",), ("critic.clip=0.05",), needs={"source": "base"})
    command = commands.training(network, SIZES["tiny"], tmp_path, "new", 1)
    assert command[:3] == ["cacjax.train", "--config", "uda.py:tiny,tone"]
    assert command[-3:] == ["--config.seed=1", "--config.critic.clip=0.05", f"--config.stages.source.workdir={tmp_path / 'base'}"]
    assert commands.training(Network("uda.py"), SIZES["published"], tmp_path, "new", 1)[2] == "uda.py"


def test_a_view_is_scored_with_the_source_network(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "gpu")  # one after another
    networks = {"base": Network("lessmann.py"), "seen": Network(needs={"source": "base"}, scoring=("view=contrast_removed",))}
    columns = [Column("as it is", "base", "ccta", False), Column("removed", "seen", "ccta", True)]
    uda.test_protocol(networks, columns, tmp_path / "scans", tmp_path)
    plain, seen = (command for command in calls if command[0] == "cacjax.score")
    assert plain[-1:] == ["--scoring.classify=all"]
    assert seen[-2:] == ["--scoring.classify=threshold", "--scoring.view=contrast_removed"]
    at = [command[command.index("--workdir") + 1] for command in (plain, seen)]
    assert at == [str(tmp_path / "networks" / "base")] * 2
    assert plain[plain.index("--out") + 1] != seen[seen.index("--out") + 1]


def test_some_networks_alone():
    """With those that they start from, and the rows that need none."""
    wanted = experiments.only(uda.EXPERIMENTS["uda-table2"], ["full", "oracle"])
    assert list(wanted.networks) == ["full", "source_chest", "oracle"]
    assert {column.network for column in wanted.columns} == {"full", "source_chest", "oracle", ""}
    with pytest.raises(SystemExit, match=r"expected networks of the table, source_chest, full, .*; got fool"):
        experiments.only(uda.EXPERIMENTS["uda-table2"], ["fool", "full"])
    with pytest.raises(SystemExit, match="none: this table has no rows by network"):
        experiments.only(shipped.EXPERIMENTS["shipped"], ["heart"])


def test_a_failed_command_ends_the_program(monkeypatch, capfd):
    monkeypatch.setenv("JAX_PLATFORMS", "gpu")
    with pytest.raises(SystemExit, match="no such thing: a command above"):
        commands.run("no such thing", [["cacjax.there_is_none"]], None)


def evaluation(folder, f1):
    """An evaluation.json of two scans in FOLDER."""
    wanted = {"arm": "net", "stage": "final", "artery": "CAC"}
    means = {"sensitivity": 0.5, "fp_mm3": 10.0, "f1": f1, "ap": None}
    counts = [{"voxels": {"tp": 10, "fp": 0, "fn": 0}}, {"voxels": {"tp": 0, "fp": 10, "fn": 10}}]
    record = {
        "summary": [wanted | means | {"over": over} for over in ("all", "with calcium", "pooled")],
        "scans": [wanted | {"scan": str(i), "counts": count} for i, count in enumerate(counts)],
    }
    path = folder / "evaluation" / "ccta" / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))


def test_rows_are_medians_over_seeds_with_published_figures_beside(tmp_path, monkeypatch):
    column = Column("adapted", "net", "ccta", True, (0.80, 19.8, 0.66))
    measured = []
    for seed, f1 in enumerate((0.2, 0.9, 0.4)):
        evaluation(tmp_path / str(seed), f1)
        measured.append(uda.measure(column, tmp_path / str(seed)))
    row = uda.summarise(column, measured)
    assert row["f1"] == 0.4 and row["f1_seeds"] == [0.2, 0.9, 0.4] and row["published_f1"] == 0.66
    assert np.isnan(row["ap_pooled"]) and row["n"] == 2
    bare = uda.summarise(column._replace(published=(None, None, None)), measured)
    options = types.SimpleNamespace(experiment="uda-table2", size="tiny", scans=2)
    monkeypatch.setattr(uda, "summary", lambda *_: [row, bare])
    experiments.write(uda, None, measured, options, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| 0.40 (0.66) |" in text and "| 0.40 |" in text
    assert (tmp_path / "table.png").stat().st_size > 5000 and (tmp_path / "table.csv").read_text().count("adapted") == 2


def test_seeds_measured_elsewhere_join_the_medians(tmp_path, monkeypatch, capsys):
    column = Column("adapted", "net", "ccta", True)
    networks = {"net": Network("uda.py")}
    monkeypatch.setitem(uda.EXPERIMENTS, "uda-table2", uda.Experiment(networks, (column,)))
    monkeypatch.setattr(commands, "train", lambda networks, size, folder, seed: evaluation(folder, (0.2, 0.9, 0.4)[seed]))
    monkeypatch.setattr(uda, "begin", lambda *_: None)
    monkeypatch.setattr(uda, "test", lambda *_: None)
    run = lambda out, *words: experiments.main(["uda-table2", "--out", str(tmp_path / out), *words])  # noqa: E731
    run("apart", "--seeds", "2")
    there = str(tmp_path / "apart" / "results.json")
    run("joined", "--config.seed", "2", "--with", there)
    run("again", "--seeds", "0", "--with", str(tmp_path / "joined" / "results.json"))
    for out in ("joined", "again"):
        (row,) = json.loads((tmp_path / out / "results.json").read_text())["rows"]
        assert row["f1"] == 0.4 and row["seeds"] == 3
    for words, message in (
        (("--config.seed", "1", "--with", there), "has seed 1"),
        (("--config.seed", "2", "--with", there, there), "has seed 0"),
        (("--size", "small", "--seeds", "0", "--with", there), "has size tiny, expected small"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("wrong", *words)
    (tmp_path / "other.json").write_text('{"options": {}}')
    for name, message in (("none.json", "cannot be read"), ("other.json", "is not a results.json")):
        with pytest.raises(SystemExit, match=message):
            run("wrong", "--seeds", "0", "--with", str(tmp_path / name))
    other = uda.Experiment({"net": Network("uda.py")}, (column._replace(title="other"),))
    monkeypatch.setitem(uda.EXPERIMENTS, "uda-table2", other)
    with pytest.raises(SystemExit, match="other columns"):
        run("wrong", "--seeds", "0", "--with", there)
    assert not (tmp_path / "wrong").exists()


def test_the_first_command_trains_half_and_ends_in_commands_that_can_be_run(tmp_path, monkeypatch, capsys):
    """Two arms, the source network trained once and for both; then what to look at, and three commands that their parsers take."""
    out, trained = tmp_path / "quick", {}
    monkeypatch.setattr(commands, "train", lambda networks, size, folder, seed: trained.update(networks))
    monkeypatch.setattr(uda, "begin", lambda *_: None)
    monkeypatch.setattr(uda, "test", lambda *_: None)
    monkeypatch.setattr(uda, "measure", lambda column, folder: measured([9, 1, 1 + (column.network == "source")], [0, 1, 0]))
    experiments.main(["uda-quick", "--out", str(out)])
    assert list(trained) == ["source", "adapted"] and trained["adapted"].needs == {"source": "source"}
    whole, half = (importlib.import_module("configs.uda").get_config(words) for words in ("tiny", "tiny,quick"))
    assert (2 * half.steps, half.stages.source.steps) == (whole.steps, whole.stages.source.steps)
    printed = capsys.readouterr().out
    assert re.search(r"done in \d+\.\d minutes on \d+ cores of together [1-9]\d* GFLOP/s; ", printed)
    assert f"look at {out}/table.png" in printed and "over its source" in printed
    scoring, training, table = (line.split("#")[0].split()[2:] for line in printed.splitlines() if " -m cacjax." in line)
    assert scoring[0] == "cacjax.score" and cacjax.score.parse(scoring[1:]).workdir == str(out / "seed0" / "networks" / "adapted")
    assert training[0] == "cacjax.train" and train.resolve(training[1:])[0].endswith("configs/heart.py:tiny,whole")
    assert table[0] == "cacjax.experiments" and experiments.parse(table[1:]).experiment == "uda-table2"


FIGURES = ("sensitivity", "fp_mm3", "f1", "sensitivity_pooled", "f1_pooled", "ap_pooled")  # that are measured


def measured(*counts):
    """One seed's figures of scans with these voxel counts (tp, fp, fn)."""
    tp, fp, fn = np.sum(counts, 0)
    return dict.fromkeys(FIGURES, 0.5) | {"f1_pooled": 2 * tp / (2 * tp + fp + fn), "counts": counts}


def test_interval_spans_what_other_scans_could_have_shown():
    alike = [measured(*[[10, 0, 0]] * 5, *[[0, 10, 10]] * 5)]
    low, high = uda.interval(uda.resampled(alike))
    assert low < 0.5 < high and low < 0.25 and high > 0.75
    assert uda.interval(uda.resampled([measured(*[[5, 5, 5]] * 4)])) == pytest.approx((0.5, 0.5), abs=1e-5)
    np.testing.assert_array_equal(uda.resampled(alike), uda.resampled(alike))


def test_gain_over_the_source_is_of_the_same_scans():
    """Scans differ far more than the two networks do: each alone is uncertain, their difference is not."""
    columns = Column("before", "base", "ccta", True), Column("after", "new", "ccta", True), Column("raw", "new", "ccta", False)
    experiment = uda.Experiment({"base": Network("lessmann.py"), "new": Network("uda.py", needs={"source": "base"})}, columns)
    scans = [(10 * i, 100 - 10 * i, 0) for i in range(1, 10)]
    better = measured(*[(tp + 10, fp - 10, 0) for tp, fp, _ in scans])
    before, after, raw = uda.summary(experiment, [{"seed": 0, "columns": [measured(*scans), better, better]}])
    assert before["gain"] is None and raw["gain"] is None and after["gain"] == pytest.approx(after["f1_pooled"] - before["f1_pooled"])
    assert 0 < after["gain_low"] < after["gain"] < after["gain_high"] < 0.15 < after["f1_high"] - after["f1_low"]


def test_scans_with_and_without_calcium_apart():
    """Half of the calcium found in one, all in another; of two scans without any, one is marked."""
    apart = uda.by_calcium([[5, 0, 5], [8, 0, 0], [0, 3, 0], [0, 0, 0]])
    assert apart == {"f1_calcified": pytest.approx((2 / 3 + 1) / 2), "fp_share_clean": 0.5}
    assert uda.by_calcium([[0, 0, 5], [0, 1, 0]]) == {"f1_calcified": pytest.approx(0, abs=1e-5), "fp_share_clean": 1.0}
    assert np.isnan(uda.by_calcium([[5, 0, 5]])["fp_share_clean"])
    row = uda.summarise(Column("net", "net", "ccta", True), [measured([5, 0, 5], [8, 0, 0], [0, 3, 0], [0, 0, 0])])
    assert uda.shown(row)["F1, CAC"] == "0.83" and uda.shown(row)["FP, no CAC"] == "0.50"


def test_two_networks_with_the_same_figures_are_refused():
    """Such as two whose critic was dead; a threshold may share figures with another, and a network with itself in another column."""
    columns = [Column(f"the {name}", name, "ccta", True, margin_hu=None if name else 0) for name in ("one", "two", "one", "", "")]
    experiment = uda.Experiment({name: Network("uda.py") for name in ("one", "two")}, tuple(columns))
    same, again, other = (measured([5, 1, 5], [0, fp, 0]) for fp in (3, 3, 2))
    assert len(uda.summary(experiment, [{"seed": 3, "columns": [same, other, same, other, other]}])) == 5
    with pytest.raises(SystemExit, match=r"seed 4: the one and the two have the same figures.*metrics.jsonl of one and two"):
        uda.summary(experiment, [{"seed": 4, "columns": [same, again, same, other, other]}])


def test_a_threshold_alone_by_hand(tmp_path, monkeypatch):
    """A lesion 60 HU above the scan threshold, blood 10 HU above it, bone as bright as the lesion outside of the heart."""
    hu, label, heart = np.zeros((3, 12, 12), np.int16), np.zeros((3, 12, 12), np.uint8), np.zeros((3, 12, 12), np.uint8)
    hu[1, 1:3, 1:4], hu[1, 6:8, 6:8], hu[1, 9:11, 1:3] = 360, 310, 360
    label[1, 1:3, 1:4], heart[:, :8] = 2, 1
    affine = np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    for name, volume, kind in (("a", hu, np.int16), ("m", label, np.uint8), ("h", heart, np.uint8)):
        write_image(volume, affine, tmp_path / f"{name}.nii.gz", kind)
    (tmp_path / "ccta").mkdir()
    (tmp_path / "ccta" / "manifest.csv").write_text("scan,mask,heart,threshold_hu\n../a.nii.gz,../m.nii.gz,../h.nii.gz,300\n")
    experiment = uda.Experiment({}, tuple(uda.no_network(margin) for margin in (0, 25, 100)))
    monkeypatch.setattr(uda, "test_protocol", lambda *_: pytest.fail("there is no network to be scored"))
    uda.test(experiment, None, tmp_path, tmp_path / "seed0", 1)
    found = [uda.measure(column, tmp_path / "seed0") for column in experiment.columns]
    assert [one["counts"] for one in found] == [[[6, 4, 0]], [[6, 0, 0]], [[0, 0, 6]]]
    assert [one["fp_mm3"] for one in found] == [8, 0, 0] and found[0]["f1"] == pytest.approx(12 / 16, abs=1e-5)
    rows = uda.summary(experiment, [{"seed": 0, "columns": found}])
    assert [row["network"] for row in rows][::2] == ["no network, threshold + 0 HU", "no network, threshold + 100 HU"]
    assert uda.shown(rows[1])["pooled F1"].startswith("1.00") and uda.shown(rows[1])["AP"] == ""


def test_the_full_method_is_the_papers_flow():
    """Chest CT, then labelled cardiac CT of other patients beside unlabelled CCTA. Published figures stand where the paper has them."""
    experiment = EXPERIMENTS["uda-table2"]
    full, source = (experiment.networks[name] for name in ("full", "source_chest"))
    assert full.needs == {"source": "source_chest"} and not full.settings and not full.words
    assert "data.splits.source_train.protocol=chest" in source.settings and "data.seed=2000" in source.settings
    config = importlib.import_module("configs.uda").get_config()
    assert config.data.splits.source_train.protocol == "cardiac" and config.data.seed + config.data.splits.source_train.count < 2000
    first = config.stages.source.data
    assert [f"data.splits.source_train.protocol={first.splits.source_train.protocol}", f"data.seed={first.seed}"] == list(source.settings)
    control = experiment.networks["full_without_adversary"]
    assert control == full._replace(settings=("adversarial_weight=0.0",))
    of_paper = {(c.title, c.protocol, c.reduced): c.published for c in experiment.columns if c.published != (None,) * 3}
    assert of_paper == {
        ("source network from chest CT", "chest", False): (0.89, 73.6, 0.66),
        ("source network from chest CT", "ccta", False): (0.41, 132.0, 0.16),
        ("source network from chest CT", "ccta", True): (0.43, 0.58, 0.41),
        ("full method", "ccta", False): (0.78, 64.5, 0.41),
        ("full method", "ccta", True): (0.80, 19.8, 0.66),
        ("full method without L_cls", "ccta", False): (0.68, 25.8, 0.49),
        ("chest CT in source and adaptation", "ccta", False): (0.53, None, None),
    }


def test_small_adapts_with_pools_and_a_trained_critic():
    """What the issue of the table asks for: 16 patches a domain, 20 critic updates a block, 2,000 before the generator moves."""
    arms = uda.of_size(EXPERIMENTS["uda-table2"], SIZES["small"]).networks
    adapting = {name: network for name, network in arms.items() if network.config == "uda.py"}
    assert len(adapting) > 10 and arms["source"].settings == ()
    for name, network in adapting.items():
        config = importlib.import_module("configs.uda").get_config(",".join(SIZES["small"].words + network.words)).unlock()
        values = (pair.split("=") for pair in network.settings)
        config.update_from_flattened_dict({k: ast.literal_eval(v) if v[0] in "(0123456789" else v for k, v in values})
        assert config.critic.updates == 20 and config.pretrain_blocks * config.critic.updates >= 2000, name
        assert config.streams.pool_source.count == config.streams.pool_target.count == (1, 16)
        assert config.steps > config.pretrain_blocks


@pytest.mark.parametrize("size", ["small", "published"])
def test_no_two_arms_train_the_same(size):
    """But for the arm that the size names, which is not trained again, and at published size three orientations."""
    whole, distinct, seen = EXPERIMENTS["uda-table2"], uda.of_size(EXPERIMENTS["uda-table2"], SIZES[size]), {}
    assert whole.networks.keys() - distinct.networks.keys() == {SIZES[size].adapted}
    assert networks_of(distinct) == distinct.networks.keys()
    for name, network in whole.networks.items():
        if network.config:
            module = importlib.import_module(f"configs.{network.config.removesuffix('.py')}")
            config = module.get_config(",".join(SIZES[size].words + network.words)).unlock()
            values = (pair.split("=") for pair in network.settings)
            config.update_from_flattened_dict({k: ast.literal_eval(v) if v[0].isdigit() else v for k, v in values})
            seen.setdefault((network.needs.get("source"), config.to_json(sort_keys=True)), []).append(name)
    alike = [sorted(names) for names in seen.values() if len(names) > 1]
    assert sorted(alike) == [["adapted", SIZES[size].adapted]] + ([] if size == "small" else [["source", "source_3"]])


def test_the_ensemble_and_each_member_are_scored(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ensemble, "controls", lambda folder: {"nothing": {}, "everything": {}})
    experiment = ensemble.EXPERIMENTS["ensemble-table1"]
    ensemble.begin(experiment, ensemble.SIZES["small"], tmp_path / "test", 100)
    ensemble.test(experiment, ensemble.SIZES["small"], tmp_path / "test", tmp_path, 100)
    made, *scored, evaluated = calls
    assert made[made.index("--categories") + 1 :][:5] == ["20"] * 5 and made[made.index("--shape") + 1 :][:3] == ["48", "218", "218"]
    assert len(scored) == 18 and sum("--scores-only" in command for command in scored) == 15
    for command in scored:
        name = command[command.index("--out") + 1].split("/")[-1]
        member = [word for word in command if word.startswith("--scoring.member=")]
        assert member == ([f"--scoring.member={name[-1]}"] if "_" in name else [])
        assert command[command.index("--workdir") + 1] == str(tmp_path / "networks" / name.split("_")[0])
    assert [word.split("=")[0] for word in evaluated[2:5]] == ["j1", "j2", "ad"]
    with pytest.raises(SystemExit):
        experiments.parse(["ensemble-table1", "--out", "x", "--scans", "7"])
    assert "must be a multiple of 5, got 7" in capsys.readouterr().err
    assert set(ensemble.of_size(experiment, ensemble.SIZES["tiny"]).networks) == {"j1"}


def ensemble_results(folder):
    """The files that one seed leaves, of ten scans: the ensemble misses one category, its members two to four."""
    real = [0.0, 0.0, 5.0, 9.0, 50.0, 90.0, 150.0, 390.0, 450.0, 900.0]
    found = [*real[:2], 0.0, *real[3:]]
    scan_rows = [
        {"scan": f"s{i}", "arm": "j1", "stage": "final", "artery": "CAC", "reference_agatston": r, "found_agatston": f}
        for i, (r, f) in enumerate(zip(real, found))
    ]
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"scans": scan_rows}))
    for k in range(1, 6):
        out = folder / "scores" / f"j1_{k}"
        out.mkdir(parents=True)
        for i, score in enumerate(found):
            score = 20.0 if i in (0, 1, 3)[: 1 + k % 3] else score  # false ones, and a category too high
            row = {"scan": f"s{i}", "status": "scored", "artery": "CAC", "agatston": score}
            (out / f"s{i}.json").write_text(json.dumps({"rows": [row]}))
    everything = {f"s{i}": 3000.0 for i in range(10)}
    (folder / "controls.json").write_text(json.dumps({"nothing": dict.fromkeys(everything, 0.0), "everything": everything}))


def test_table_1_by_hand(tmp_path):
    ensemble_results(tmp_path / "seed0")
    experiment = ensemble.of_size(ensemble.EXPERIMENTS["ensemble-table1"], ensemble.SIZES["tiny"])
    columns = [ensemble.measure(column, tmp_path / "seed0") for column in experiment.columns]
    single, vote, nothing, everything = ensemble.summary(experiment, [{"seed": 0, "columns": columns}])
    assert [len(column["found"]) for column in columns] == [5, 1, 1, 1]
    assert vote["accuracy"] == pytest.approx(0.9) and nothing["accuracy"] == everything["accuracy"] == pytest.approx(0.2)
    assert single["accuracy"] == pytest.approx(np.mean([0.7, 0.6, 0.8, 0.7, 0.6])) and single["accuracy_sd"] == pytest.approx(
        0.0837, abs=1e-4
    )
    assert vote["accuracy_gain"] == pytest.approx(0.9 - single["accuracy"]) and 0 <= vote["accuracy_gain_low"] < vote["accuracy_gain"]
    assert single["accuracy_gain"] is None and nothing["c_index"] == 0.5 and vote["published_accuracy"] == 0.847
    # 40 pairs of unequal categories; the missed B ties with both A, and every other pair is right
    assert vote["c_index"] == pytest.approx((40 - 2 + 1) / 40) and vote["c_index_printed"] == pytest.approx(38 / 45)
    assert "ensemble" in ensemble.shown(vote)["networks"] and "; 0.847" in ensemble.shown(vote)["category accuracy"]
    (tmp_path / "seed0" / "scores" / "j1_2" / "s4.json").unlink()
    with pytest.raises(SystemExit, match="no score of s4"):
        ensemble.measure(experiment.columns[0], tmp_path / "seed0")


def test_cells_are_counted_by_every_rule(tmp_path):
    """Four pixels of 200 HU in a cell that their mean leaves at 33 HU; two of noise in another."""
    hu, label = np.zeros((3, 12, 12), np.int16), np.zeros((3, 12, 12), np.uint8)
    hu[1, 0:2, 0:2] = 200
    label[1, 0:2, 0:2] = 1
    hu[1, 8, 8:10] = 150
    affine = np.eye(4)
    affine[:3, :3] = np.diag([0.6, 0.6, 3.0])[:, ::-1]
    write_image(hu, affine, tmp_path / "a.nii.gz")
    write_image(label, affine, tmp_path / "m.nii.gz", np.uint8)
    write_image(np.ones_like(label), affine, tmp_path / "h.nii.gz", np.uint8)
    (tmp_path / "manifest.csv").write_text("scan,mask,heart\na.nii.gz,m.nii.gz,h.nii.gz\n")
    experiment = cells.EXPERIMENTS["ensemble-cells"]
    cells.test(experiment, cells.SIZES["small"], tmp_path, tmp_path, 5)
    rows = cells.summary(experiment, [{"seed": 0, "columns": [cells.measure(column, tmp_path) for column in experiment.columns]}])
    found = {row["restored"]: (row["kept"], row["scans_with_calcium"], row["noise"]) for row in rows}
    assert found == {"max_components": (1, 1, 0), "max": (1, 1, 1), "mean": (1, 1, 1), "none": (0, 0, 0)}
    cells.draw(tmp_path / "table.png", rows)
    assert list(cells.shown(rows[0]).values())[1:] == ["1.000 [1.000, 1.000]"] * 2 + ["0.0 [0.0, 0.0]"]
