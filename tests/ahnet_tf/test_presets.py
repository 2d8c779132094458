"""Settings of a run: sources, precedence, rejected values."""

import json

import attrs
import pytest

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.presets import PRESETS, preset_for, run_config
from preprocessing.errors import SettingsError
from preprocessing.settings import from_dict, to_dict
from preprocessing.tasks import PRESETS as TASKS
from preprocessing.tasks import Task

LIVER, SMALL = TASKS["ct_liver"], TASKS["ct_liver_small"]
OWN = Task("own", ("background", "kidney"), (-100.0, 200.0))


def test_published_recipe():
    run = run_config(LIVER)
    assert run.preset == "ct_liver"
    two, three = run.stages["2d"], run.stages["3d"]
    assert (two.model.architecture, three.model.architecture) == ("mcgcn", "ahnet")
    assert (two.training.learning_rate, three.training.learning_rate) == (5e-4, 1e-3)
    assert two.training.loss == three.training.loss == "focal"
    assert two.training.gamma == three.training.gamma == 2
    assert three.model.width == 1
    assert three.model.blocks == (3, 4, 6, 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_both_stages_of_a_preset_share_the_encoder(preset):
    stages = run_config(TASKS[preset]).stages
    for name in ("width", "blocks", "norm", "channels"):
        assert getattr(stages["2d"].model, name) == getattr(stages["3d"].model, name)


def test_a_task_has_its_own_preset_or_the_published_one():
    assert preset_for(SMALL) == "ct_liver_small"
    assert preset_for(OWN) == "ct_liver"
    assert preset_for(attrs.evolve(OWN, target="heat_map")) == "dbt_lesion"


def test_a_heat_map_is_learned_through_a_sigmoid():
    stages = run_config(TASKS["dbt_lesion"]).stages
    assert {stage.model.activation for stage in stages.values()} == {"sigmoid"}
    with pytest.raises(SettingsError, match="activation: expected sigmoid, because task dbt"):
        run_config(TASKS["dbt_lesion"], settings=["3d.activation=softmax"])


def test_classes_and_window_come_from_the_task():
    model = run_config(OWN, settings=["class_weights=[1,2]"]).stages["3d"].model
    assert model.classes == 2
    assert model.intensity_window == (-100.0, 200.0)
    with pytest.raises(SettingsError, match="classes: expected 2"):
        run_config(OWN, settings=["classes=3"])


def test_two_classes_may_share_one_output_of_a_sigmoid():
    for task in (OWN, TASKS["dbt_lesion"]):
        settings = ["classes=1", "activation=sigmoid", "class_weights=[1,2]"]
        model = run_config(task, settings=settings).stages["3d"].model
        assert (model.classes, model.class_count) == (1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pvp_border": 1},
        {"unet_levels": 2.0},
        {"unet_levels": True},
        {"intensity_window": (0.0, float("inf"))},
        {"growth": True},
        {"blocks": (1.0, 1, 1, 1)},
        {"width": float("nan")},
        {"width": True},
    ],
)
def test_settings_given_in_python_are_checked_as_those_in_files(wrong):
    (name,) = wrong
    with pytest.raises(SettingsError, match=f"^{name}: expected "):
        ModelConfig(**wrong)


@pytest.mark.parametrize("name", ["deterministic", "jit_compile", "recompute"])
def test_switches_are_true_or_false(name):
    with pytest.raises(SettingsError, match=f"{name}: expected true or false, found 1"):
        TrainingConfig(**{name: 1})


def test_settings_win_over_file_over_preset(tmp_path):
    file = tmp_path / "part.json"
    part = {"preset": "ct_liver_small", "3d": {"training": {"steps": 77, "gamma": 1.5}}}
    file.write_text(json.dumps(part))
    run = run_config(LIVER, config_file=file, settings=["gamma=0.5", "2d.width=0.75"])
    assert run.preset == "ct_liver_small"
    assert run.stages["3d"].training.steps == 77
    assert run.stages["2d"].training.steps == PRESETS["ct_liver_small"]["2d"]["steps"]
    assert [run.stages[stage].training.gamma for stage in ("2d", "3d")] == [0.5, 0.5]
    assert [run.stages[stage].model.width for stage in ("2d", "3d")] == [0.75, 0.25]


def test_dumped_settings_are_read_back(tmp_path):
    run = run_config(SMALL, settings=["3d.loss=dice_focal", "seed=9", "class_weights=null"])
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(run.to_dict()))
    assert run_config(SMALL, config_file=file) == run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learning_rte=1"], "Did you mean 'learning_rate'"),
        (["2d.stpes=1"], "Did you mean 'steps'"),
        (["4d.steps=1"], "NAME=VALUE"),
        (["steps"], "NAME=VALUE"),
        (["loss=fokal"], "Did you mean 'focal'"),
        (["precision=float16"], "precision"),
        (["steps=0"], "steps: expected a whole number of at least 1, found 0"),
        (["batch_size=-2"], "batch_size"),
        (["steps=many"], "steps: expected a whole number"),
        (["learning_rate=0"], "learning_rate"),
        (["learning_rate=NaN"], "learning_rate"),
        (["learning_rate=-1e-3"], "learning_rate"),
        (["flip_probability=2"], "flip_probability"),
        (["steps=500"], "warmup_steps: .* found 500. Give a smaller number, --set warmup_steps=N"),
        (["class_weights=[1,2]"], "class_weights: .* Give --set class_weights=null for none, or a"),
        (["batch_size=3", "replicas=2"], "multiple of the 2 replicas"),
        (["class_weights=[0,0,0]"], "class_weights"),
        (["class_weights=[1,-1,1]"], "class_weights"),
        (["class_weights=3"], "class_weights"),
        (["jit_compile=1"], "jit_compile"),
        (["deterministic=yes"], "deterministic: expected true or false"),
        (["unet_levels=1"], "unet_levels: expected 0, or a whole number from 2 to 6, found 1"),
        (["unet_levels=7"], "unet_levels: expected 0, or a whole number from 2 to 6, found 7"),
        (["weight_decay=-0.1"], "weight_decay: expected a finite number of at least 0"),
        (["weight_decay=2000"], "weight_decay: expected less than 1 / learning_rate"),
        (["ema_momentum=1"], "ema_momentum: expected a fraction from 0 to below 1"),
        (["ema_momentun=0.9"], "Did you mean 'ema_momentum'"),
        (["precision=mixed_float61"], "Did you mean 'mixed_float16'"),
        (["loss=heat_map_l2"], "loss: expected focal, cross_entropy or dice_focal with a softmax"),
        (["foreground_prior=0.01"], "foreground_prior: expected 0 with a softmax"),
        (["width=wide"], "settings of stage 2d"),
        (["width=Infinity"], "width: expected a finite factor above 0, found inf"),
        (["growth=20.5"], "growth: expected a whole number of at least 1, found 20.5"),
        (["blocks=[1.5,1,1,1]"], "blocks: expected four whole numbers of at least 1"),
        (["blocks=[1,1,1]"], "blocks: expected four whole numbers of at least 1"),
        (["pvp_border=1"], "pvp_border: expected true or false, found 1"),
        (["loss=1"], "loss: expected one of focal"),
        (["decay=polynomial"], "decay: expected one of cosine, constant, found 'polynomial'"),
        (["seed=4294967296"], "seed: expected a whole number from 0 to 4294967295"),
        (["seed=-1"], "seed: expected a whole number from 0 to 4294967295"),
        (["seed=true"], "seed: expected a whole number from 0 to 4294967295, found True"),
        (["classes=1"], "classes: expected at least 2 with a softmax; one output needs a sigmoid"),
        (["classes=1", "activation=sigmoid"], "classes: expected 3 .background, liver, tumour"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        run_config(LIVER, settings=settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a JSON object"),
        ("[]", "a JSON object of settings, found list"),
        ('{"preset": ["ct_liver"]}', "preset: expected one of ct_liver"),
        ('{"3dd": {}}', "Did you mean '3d'"),
        ('{"3d": {"modle": {}}}', "Did you mean 'model'"),
        ('{"3d": {"training": {"stepps": 1}}}', "Did you mean 'steps'"),
        ('{"3d": {"model": {"steps": 1}}}', "settings among architecture"),
        ('{"3d": 1}', "found int"),
        ('{"preset": "ct_livre"}', "Did you mean 'ct_liver'"),
    ],
)
def test_damaged_settings_files_are_refused(tmp_path, content, message):
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        run_config(LIVER, config_file=file)


def test_training_settings_survive_json():
    config = TrainingConfig(class_weights=(0.5, 1.0, 2.0), decay="constant")
    assert from_dict(TrainingConfig, json.loads(json.dumps(to_dict(config)))) == config
