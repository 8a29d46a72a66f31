"""Arguments of models in files: groups as dictionaries, and where older versions had them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import models
from models import ICNN, Convexity, FieldsOfExperts, InitialFilters, InitialKernels, LeakyReLU, LearnedTV
from models.files.arguments import OLDER, current_arguments, plain_arguments, typed_arguments
from models.files.storage import ModelFileError, load_model, save_regularizer
from recon.commands.configuration.older import current_configuration
from recon.lower_level import Recreatable

FLAT = {
    "models.ConvexRidge": {"initial_filters": "normal", "seed": 3},
    "models.FieldsOfExperts": {"initial_filters": "normal", "seed": 3},
    "models.ICNN": {"initial_filters": "normal", "seed": 3, "activation": "smooth", "slope": 0.1, "width": 0.3},
    "models.LearnedTV": {
        "initial": "random",
        "seed": 3,
        "dual_convexity": 0.2,
        "field_convexity": 0.3,
        "image_convexity": 0.4,
    },
    "models.WeaklyConvexRidge": {"initial_filters": "normal", "seed": 3},
}


class Experts(FieldsOfExperts):
    """Of a user, with the constructor of its base."""


class Seeded(FieldsOfExperts):
    """Of a user, with a constructor of its own, whose seed is no older argument."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(2, 3, initial_filters=InitialFilters("normal", seed))


def made(name: str, arguments: dict[str, object]) -> Recreatable:
    cls = getattr(models, name.rpartition(".")[2])
    return cls(**typed_arguments(cls, arguments))


@pytest.mark.parametrize("name", OLDER)
def test_flat_arguments_are_fields_of_groups_by_now(name: str) -> None:
    groups = {g: {f: FLAT[name][older] for older, f in fields.items()} for g, fields in OLDER[name].items()}
    assert current_arguments(name, FLAT[name]) == groups
    assert current_arguments(name, groups) == groups
    model = made(name, FLAT[name])
    found = plain_arguments(model.constructor_arguments())
    for group, fields in groups.items():
        assert {field: found[group][field] for field in fields} == fields  # type: ignore[index]


@pytest.mark.parametrize("name", OLDER)
def test_what_was_not_given_keeps_its_default(name: str) -> None:
    for older, value in FLAT[name].items():
        given, defaults = made(name, {older: value}), made(name, {})
        ours, theirs = (plain_arguments(m.constructor_arguments()) for m in (given, defaults))
        moved = current_arguments(name, {older: value})
        assert ours == {k: v | moved[k] if k in moved and isinstance(v, dict) else v for k, v in theirs.items()}


def test_the_table_names_groups_that_the_constructors_have() -> None:
    for name, groups in OLDER.items():
        parameters = inspect.signature(getattr(models, name.rpartition(".")[2])).parameters
        for group, fields in groups.items():
            assert set(fields.values()) <= vars(parameters[group].default).keys()


@pytest.mark.parametrize(
    "model",
    [
        FieldsOfExperts(2, 3, initial_filters=InitialFilters("normal", 4)),
        ICNN(2, 3, activation=LeakyReLU(0.1, 0.3, "smooth")),
        LearnedTV(2, initial=InitialKernels("random", 7), convexity=Convexity(image=0.1)),
        Experts(2, 3, initial_filters=InitialFilters("normal", 4)),
        Seeded(5),
    ],
    ids=lambda model: type(model).__name__,
)
def test_groups_come_back_from_a_file(model: Recreatable, tmp_path: Path) -> None:
    save_regularizer(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", trust=[type(model)])
    assert loaded.constructor_arguments() == model.constructor_arguments()


def test_a_class_of_a_user_with_the_constructor_of_ours_has_older_files_too(tmp_path: Path) -> None:
    filters = InitialFilters("normal", 4)
    save_regularizer(Experts(2, 3, initial_filters=filters), tmp_path / "model")
    description = tmp_path / "model.json"
    head = json.loads(description.read_text())
    head["arguments"] |= {"initial_filters": "normal", "seed": 4}
    description.write_text(json.dumps(head))
    assert load_model(tmp_path / "model", [Experts])[0].constructor_arguments()["initial_filters"] == filters


def test_a_field_that_a_group_does_not_have_is_named(tmp_path: Path) -> None:
    save_regularizer(FieldsOfExperts(2, 3), tmp_path / "model")
    description = tmp_path / "model.json"
    head = json.loads(description.read_text())
    head["arguments"]["initial_filters"]["sort"] = "dct"
    description.write_text(json.dumps(head))
    with pytest.raises(ModelFileError, match=r"FieldsOfExperts cannot be made with the arguments .*'sort'"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("path", ["models.ICNN", "ICNN", "models.icnn.ICNN"])
def test_configurations_may_have_flat_arguments(path: str) -> None:
    with pytest.warns(FutureWarning, match=r"the option width is called activation\.width by now"):
        found = current_configuration({"class_path": path, "init_args": {"filters": 4, "width": 0.3, "seed": 1}})
    assert found["init_args"] == {"filters": 4, "activation": {"width": 0.3}, "initial_filters": {"seed": 1}}


def test_arguments_of_other_classes_stay() -> None:
    config = {"class_path": "own.ICNN", "init_args": {"width": 0.3, "seed": 1}}
    assert current_configuration(config) == config


@pytest.mark.parametrize(
    ("kind", "argument", "value", "wanted"),
    [
        (FieldsOfExperts, "initial_filters", "dct", "InitialFilters"),
        (ICNN, "initial_filters", "normal", "InitialFilters"),
        (ICNN, "activation", 0.1, "LeakyReLU"),
        (LearnedTV, "convexity", 0.1, "Convexity"),
        (LearnedTV, "initial", "random", "InitialKernels"),
    ],
)
def test_arguments_that_are_groups_by_now_are_refused_by_name(
    kind: type, argument: str, value: object, wanted: str
) -> None:
    with pytest.raises(TypeError, match=f"{argument} is {value!r}, but must be an instance of {wanted}"):
        kind(**{argument: value})
