"""Attributes: their loss, their scale, one model with emotions and attributes, and attributes alone."""

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, pipeline

from modeling_edrl_mea import AlignmentCallback, EdrlMeaConfig, EdrlMeaForAudioClassification, closed_form
from modeling_edrl_mea.embeddings import Embeddings
from modeling_edrl_mea.linear_heads import fit_ratings
from modeling_edrl_mea.targets import attribute_loss
from tests.conftest import every_arrangement, inputs_of, noise_recordings

NAMES = ["arousal", "valence"]
SCALE = {"arousal": [1, 7], "valence": [1, 5]}
ALONE = {"problem_type": "regression", "id2label": dict(enumerate(NAMES)), "attribute_ranges": SCALE}
BOTH = {"attribute_names": NAMES, "attribute_ranges": SCALE}
KINDS = {"alone": ALONE, "both": BOTH}

every_kind = pytest.mark.parametrize("kind", KINDS)


def concordance(predicted: np.ndarray, ratings: np.ndarray) -> float:
    """CCC as Lin (1989) writes it."""
    covariance = np.mean((predicted - predicted.mean()) * (ratings - ratings.mean()))
    return 2 * covariance / (predicted.var() + ratings.var() + (predicted.mean() - ratings.mean()) ** 2)


@pytest.fixture
def recordings():
    return noise_recordings(3, seed=1)


def ratings_of(n: int, seed: int = 0) -> torch.Tensor:
    """(n, 2) on the scales above, some of them missing."""
    ratings = 1 + 4 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
    ratings[1::4, 0] = ratings[2::5, 1] = torch.nan
    return ratings


# Loss


def test_the_loss_is_one_less_the_concordance_of_the_ratings_that_are_there():
    predicted, ratings = torch.randn(40, 3), torch.randn(40, 3)
    ratings[::3, 1] = torch.nan
    ratings[:, 2] = torch.nan
    found = attribute_loss(predicted, ratings, None, "ccc")
    columns = [(predicted[there, i].numpy(), ratings[there, i].numpy()) for i, there in enumerate(~ratings.isnan().T)]
    assert found.item() == pytest.approx(np.mean([1 - concordance(*pair) for pair in columns[:2]]), abs=1e-5)
    squared = np.mean([np.square(a - b).mean() for a, b in columns[:2]])
    assert attribute_loss(predicted, ratings, None, "mse").item() == pytest.approx(squared, rel=1e-5)


@pytest.mark.parametrize("kind", ["ccc", "mse"])
def test_a_missing_rating_moves_nothing_and_a_weight_is_a_repetition(kind):
    predicted, ratings = torch.randn(6, 2, requires_grad=True), torch.randn(6, 2)
    ratings[4, 0] = torch.nan
    attribute_loss(predicted, ratings, None, kind).backward()
    assert predicted.grad[4, 0] == 0 and (predicted.grad != 0).sum() == 11
    rows = [0, 1, 1, 1, 2, 3, 4, 5]
    twice = attribute_loss(predicted[rows], ratings[rows], None, kind)
    weighed = attribute_loss(predicted, ratings, torch.tensor([1.0, 3, 1, 1, 1, 1]), kind)
    torch.testing.assert_close(weighed, twice)


@pytest.mark.parametrize("ratings", [[[torch.nan]], [[torch.nan], [torch.nan]], [[1.0]], [[1.0], [1.0]]], ids=str)
def test_a_batch_that_tells_little_has_a_finite_loss(ratings):
    predicted = torch.zeros(len(ratings), 1, requires_grad=True)
    loss = attribute_loss(predicted, torch.tensor(ratings), None, "ccc")
    loss.backward()
    assert loss.isfinite() and predicted.grad.isfinite().all()
    if ratings == [[1.0]]:  # one rating has no correlation, and still tells
        assert predicted.grad[0] < 0


# What a model returns


@every_kind
@every_arrangement
def test_attributes_come_with_the_emotions_in_one_pass(tiny_model, arrangement, recordings, kind):
    model = tiny_model(arrangement, **KINDS[kind]).train()
    labels = {"labels": torch.tensor([0, -100, 2])} if kind == "both" else {}
    output = model(**inputs_of(model, recordings), **labels, attributes=ratings_of(3))
    assert output.attributes.shape == (3, 2) and output.attributes.dtype == torch.float32
    assert output.logits.shape == (3, 4 if kind == "both" else 2)
    assert any(name.endswith("attribute") for name in output.losses)
    assert any(name.endswith("classification") for name in output.losses) == (kind == "both")
    assert all(loss.isfinite() for loss in output.losses.values())
    output.loss.backward()
    heads = [p for name, p in model.named_parameters() if "disentanglement" in name or "classifier" in name]
    assert heads and all(parameter.grad.isfinite().all() for parameter in heads)


@every_kind
@every_arrangement
def test_a_model_with_attributes_comes_back_bit_for_bit(tiny_model, tmp_path, recordings, arrangement, kind):
    model = tiny_model(arrangement, **KINDS[kind])
    model.save_pretrained(tmp_path)
    loaded, report = EdrlMeaForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.attribute_names == NAMES and loaded.config.attribute_ranges == SCALE
    inputs = inputs_of(model, recordings)
    for name in ("logits", "attributes"):
        assert torch.equal(loaded(**inputs)[name], model(**inputs)[name])


def test_labels_of_a_regression_are_the_ratings(tiny_model, recordings):
    model, ratings = tiny_model("edrl_mea", **ALONE), ratings_of(3)
    inputs = inputs_of(model, recordings)
    output = model(**inputs, labels=ratings)
    assert output.loss == model(**inputs, attributes=ratings).loss
    assert torch.equal(output.logits, output.attributes)
    unit = (output.attributes - torch.tensor([4.0, 3])) / torch.tensor([3.0, 2])
    expected = attribute_loss(unit, (ratings - torch.tensor([4.0, 3])) / torch.tensor([3.0, 2]), None, "ccc")
    torch.testing.assert_close(output.loss, expected)


def test_the_loss_of_both_is_the_sum_of_each(tiny_model, recordings):
    model, ratings, labels = tiny_model("edrl_mea", **BOTH), ratings_of(3), torch.tensor([0, 1, 2])
    inputs = inputs_of(model, recordings)
    parts = model(**inputs, labels=labels).loss + model(**inputs, attributes=ratings).loss
    torch.testing.assert_close(model(**inputs, labels=labels, attributes=ratings).loss, parts)


@every_kind
def test_silence_has_the_middle_of_the_scale(tiny_model, kind):
    model = tiny_model("edrl_mea", **KINDS[kind])
    silent, speech = np.zeros(8_000, np.float32), noise_recordings(1)[0]
    found = model(**inputs_of(model, [silent, speech])).attributes
    torch.testing.assert_close(found[0], torch.tensor([4.0, 3.0]))
    assert (found[1] - found[0]).abs().min() > 1e-4


def test_a_long_recording_is_rated_in_windows(tiny_model):
    model = tiny_model("edrl_mea", **ALONE)
    long = noise_recordings(1, seconds=3)
    expected = model(**inputs_of(model, long)).attributes
    model.config.max_window_seconds, model.config.window_overlap_seconds = 1.0, 0.4
    found = model(**inputs_of(model, long)).attributes
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


def test_temperature_and_adaptation_leave_attributes_alone(tiny_model, recordings):
    for arrangement in ("edrl", "edrl_mea"):
        model = tiny_model(arrangement, **BOTH)
        inputs = inputs_of(model, recordings)
        before = model(**inputs)
        model.set_temperature(2.0)
        model.adapt(noise_recordings(6, seed=3))
        after = model(**inputs)
        assert torch.equal(after.attributes, before.attributes)
        assert not torch.equal(after.logits, before.logits)


def test_what_only_emotions_have_is_refused_for_attributes_alone(tiny_model, recordings):
    model = tiny_model("edrl_mea", **ALONE)
    for act in (model.adapt, lambda some: model.explain(some[0])):
        with pytest.raises(ValueError, match="rates attributes alone"):
            act(recordings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({**BOTH, "attribute_ranges": {"arousel": [1, 7]}}, "'arousel'"),
        ({**BOTH, "attribute_ranges": {"arousal": [7, 1]}}, "ends of its scale"),
        ({**BOTH, "attribute_names": ["arousal", "arousal"]}, "more than once"),
        ({**BOTH, "attribute_loss": "cc"}, "Did you mean 'ccc'"),
        ({**BOTH, "attribute_weight": -1.0}, "attribute_weight"),
        ({"problem_type": "multi_label_classification"}, "Turn several emotions into one"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        EdrlMeaConfig(**settings)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [(torch.zeros(3, 3), r"\(3, 3\).*arousal"), (torch.full((3, 2), torch.inf), "infinite")],
    ids=["shape", "infinite"],
)
def test_ratings_that_do_not_fit_are_refused(tiny_model, recordings, attributes, named):
    model = tiny_model("edrl_mea", **BOTH)
    with pytest.raises(ValueError, match=named):
        model(**inputs_of(model, recordings), attributes=attributes)


@every_kind
def test_the_pipeline_rates_what_is_rated_alone_and_names_emotions_elsewhere(tiny_model, tmp_path, recordings, kind):
    model = tiny_model("edrl_mea", **KINDS[kind])
    model.save_pretrained(tmp_path)
    scores = {
        found["label"]: found["score"] for found in pipeline("audio-classification", str(tmp_path))(recordings[0])
    }
    output = model(**inputs_of(model, recordings[:1]))
    if kind == "alone":
        assert scores == pytest.approx(dict(zip(NAMES, output.attributes[0].tolist(), strict=True)), rel=1e-5)
    else:
        expected = dict(zip(model.config.labels, output.logits[0].softmax(-1).tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-6)


def test_another_set_of_attributes_starts_anew(tiny_model, tmp_path):
    tiny_model("edrl_mea", **BOTH).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attribute_ranges"):
        EdrlMeaForAudioClassification.from_pretrained(tmp_path, attribute_names=["tension"])
    others = {"attribute_names": ["tension"], "attribute_ranges": None, "ignore_mismatched_sizes": True}
    loaded = EdrlMeaForAudioClassification.from_pretrained(tmp_path, **others)
    assert loaded.classifier.weight.shape[0] == 5 and loaded.classifier.bias.abs().max() == 0
    assert loaded.config.attribute_scales == {"tension": (-1, 1)}


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"num_labels": 1}, ["LABEL_0"]),
        ({"num_labels": 1, "id2label": {0: "arousal"}}, ["arousal"]),
        ({"attribute_names": ["arousal"], "attribute_ranges": {"arousal": [1, 7]}}, ["arousal"]),
        ({"attribute_names": ["a", "b", "c", "d"]}, ["a", "b", "c", "d"]),
    ],
    ids=["a number", "a label", "an attribute", "as many attributes as emotions"],
)
def test_a_classifier_becomes_a_rater_of_what_is_named(model_folder, told, names):
    settings = {"problem_type": "regression", "ignore_mismatched_sizes": True}
    config = EdrlMeaForAudioClassification.from_pretrained(model_folder, **settings, **told).config
    assert config.attribute_names == config.labels == names


# Training


def planted(model, n: int = 200, noise: float = 0.05, **more) -> Embeddings:
    """Statistics of which two directions are the attributes, some ratings missing, and labels of some."""
    generator = torch.Generator().manual_seed(0)
    statistics = torch.randn(n, model.config.n_layers, model.config.statistics_size, generator=generator)
    direction = torch.randn(statistics[0].numel(), 2, generator=generator)
    values = statistics.flatten(1) @ direction
    values = (values / values.std(0) + noise * torch.randn(n, 2, generator=generator)) * torch.tensor([1.0, 0.5])
    values = values + torch.tensor([4.0, 3.0])
    values[1::4, 0] = values[2::5, 1] = torch.nan
    labels = torch.arange(n) % 4 if not model.config.is_regression else torch.full((n,), -100)
    labels[::3] = -100
    speakers = [str(row % 8) for row in range(n)]
    return Embeddings(statistics, labels, speakers, torch.arange(n), attributes=values, **more)


@every_kind
@pytest.mark.parametrize("loss", ["ccc", "mse"])
def test_the_closed_form_recovers_a_planted_attribute(tiny_model, kind, loss):
    settings = {"layer_combination": "concatenate", "classifier": "discriminant", "attribute_loss": loss}
    model = tiny_model("linear", **settings, **KINDS[kind])
    data = planted(model, n=600)
    unseen = Embeddings(data.layer_statistics[500:], data.labels[500:], data.speakers[500:], torch.arange(100))
    seen = Embeddings(
        data.layer_statistics[:500],
        data.labels[:500],
        data.speakers[:500],
        torch.arange(500),
        attributes=data.attributes[:500],
    )
    closed_form.fit_speech_embedding(model, seen)
    closed_form.train_classifier(model, seen)
    found = model(layer_statistics=unseen.layer_statistics).attributes
    for column, there in enumerate(~data.attributes[500:].isnan().T):
        assert concordance(found[there, column].detach().numpy(), data.attributes[500:][there, column].numpy()) > 0.95


def test_concordance_spreads_predictions_as_far_as_ratings_and_squared_errors_do_not():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((300, 10))
    values = torch.from_numpy(features[:, :1] + 2 * generator.standard_normal((300, 1)))  # a correlation of 0.45
    spread = {}
    for loss in ("ccc", "mse"):
        found = fit_ratings(torch.from_numpy(features), values, [str(row % 10) for row in range(300)], loss)
        spread[loss] = float((torch.from_numpy(features) @ found.weight.T).std() / values.std())
    assert spread["ccc"] == pytest.approx(1, abs=0.2) and spread["mse"] < 0.6


def test_edrl_starts_as_the_rater_of_the_baseline(tiny_model):
    for settings in KINDS.values():
        plain, model = (
            tiny_model(arrangement, **settings, classifier="discriminant") for arrangement in ("linear", "edrl")
        )
        data = planted(model)
        closed_form.start_disentanglement(model, data)
        closed_form.train_classifier(plain, data)
        expected, found = (one(layer_statistics=data.layer_statistics).attributes for one in (plain, model))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_soft_labels_count_by_their_shares_in_closed_form(tiny_model):
    model, repeated = (tiny_model("linear", classifier="discriminant") for _ in range(2))
    statistics = torch.randn(60, model.config.n_layers, model.config.statistics_size)
    ids, speakers = torch.arange(60) % 4, [str(row % 5) for row in range(60)]
    shares = torch.eye(4)[ids]
    shares[::2] = 0.5 * torch.eye(4)[ids[::2]] + 0.5 * torch.eye(4)[(ids[::2] + 1) % 4]
    soft = Embeddings(statistics, ids, speakers, torch.arange(60), shares=shares)
    soft._sample_weights = torch.ones(60)
    rows, labels = shares.nonzero(as_tuple=True)
    hard = Embeddings(statistics[rows], labels, [speakers[row] for row in rows], torch.arange(len(rows)))
    hard._sample_weights = shares[rows, labels]
    for one, data in ((model, soft), (repeated, hard)):
        closed_form.train_classifier(one, data)
    torch.testing.assert_close(model.classifier.weight, repeated.classifier.weight)


class Rated(torch.utils.data.Dataset):
    """What a user of the stock Trainer has: waveforms, whose pitch is rated from 1 to 7."""

    def __init__(self, model, n: int = 48):
        generator, extract = np.random.default_rng(0), model.feature_extractor()
        self.rows = []
        for height in generator.uniform(0, 1, n):
            tone = np.sin(2 * np.pi * 100 * 6**height * np.arange(4_000) / 16_000)
            inputs = extract(0.3 * tone, sampling_rate=16_000, return_tensors="pt")
            rating = torch.tensor([1 + 6 * height], dtype=torch.float32)
            self.rows.append({name: tensor[0] for name, tensor in inputs.items()} | {"labels": rating})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


@pytest.mark.parametrize("arrangement", ["edrl", "edrl_mea"])
def test_the_stock_trainer_does_regression(tiny_backbone_config, tmp_path, arrangement):
    settings = {"problem_type": "regression", "id2label": {0: "pitch"}, "attribute_ranges": {"pitch": [1, 7]}}
    backbone = copy.deepcopy(tiny_backbone_config)
    model = EdrlMeaForAudioClassification.from_backbone(backbone, arrangement=arrangement, **settings)
    model.freeze_backbone()
    data = Rated(model)
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=8, learning_rate=1e-2, per_device_train_batch_size=24, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False, eval_strategy="epoch",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[AlignmentCallback()])
    trainer.train()
    predicted = trainer.predict(data)
    assert predicted.predictions.shape == predicted.label_ids.shape == (48, 1)
    assert concordance(predicted.predictions[:, 0], predicted.label_ids[:, 0]) > 0.8
    assert all("eval_loss" in logged for logged in trainer.state.log_history if "eval_runtime" in logged)
