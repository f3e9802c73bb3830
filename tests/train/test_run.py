"""Both stages of training, from recordings on disk to a directory that `pipeline` loads."""

import json
import resource
import signal
from pathlib import Path

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments, pipeline

from modeling_edrl_mea import AlignmentCallback, EdrlMeaForAudioClassification, RecordingError, closed_form
from modeling_edrl_mea.embeddings import Embeddings
from tests.support.encoders import write_checkpoint
from tests.support.tones import EMOTIONS, tone, write_backbone, write_corpus
from train import run
from train.arguments import parse_arguments
from train.data.embeddings import CacheError, EmbeddingCache
from train.run_folder import RunError, RunFolder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "tones", n_speakers=6)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tiny_backbone_config):
    return write_backbone(tmp_path_factory.mktemp("backbone"), tiny_backbone_config)


def embeddings(model, n: int = 40) -> Embeddings:
    names = list(EMOTIONS)
    labels = [i % 4 for i in range(n)]
    waveforms = [tone(names[label], i % 5, i) for i, label in enumerate(labels)]
    speakers = [str(i % 5) for i in range(n)]
    return Embeddings(model.embed_recordings(waveforms), torch.tensor(labels), speakers, torch.arange(n))


def new_model(backbone, **kwargs) -> EdrlMeaForAudioClassification:
    model = EdrlMeaForAudioClassification.from_backbone(backbone, id2label=dict(enumerate(EMOTIONS)), **kwargs)
    model.freeze_backbone()
    return model


def arguments(folder, **kwargs) -> TrainingArguments:
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "use_cpu": True}
    return TrainingArguments(
        str(folder), report_to="none", save_strategy="no", disable_tqdm=True, **(settings | kwargs)
    )


@pytest.mark.parametrize("arrangement", ["edrl", "edrl_mea"])
def test_one_command_trains_tests_three_ways_and_saves_what_pipeline_loads(
    tmp_path, corpus, backbone, arrangement, capsys
):
    other = write_corpus(tmp_path / "other", n_speakers=2)
    report = run.main(
        [
            *("--model_name_or_path", str(backbone), "--dataset_name", str(corpus), "--test_dataset_name", str(other)),
            *("--label_scheme", "four_emotions", "--arrangement", arrangement, "--noisy_copies", "1"),
            *("--output_dir", str(tmp_path / "out"), "--num_train_epochs", "15", "--use_cpu", "True"),
            *("--report_to", "none", "--disable_tqdm", "True", "--per_device_train_batch_size", "16"),
        ]
    )
    assert report["results"][0]["metrics"]["uar"]["value"] > 0.5  # chance is 0.25
    tested = {(row["protocol"], row["test"], row["condition"], row["level"]) for row in report["results"]}
    assert {("clean", "tones", "clean", None), ("cross_corpus", "other", "clean", None)} <= tested
    assert ("corruption", "tones", "gaussian", 2) in tested
    for text in (capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()):
        assert "| train | tones |" in text and text.count("UAR: recall of each emotion") == 1 and "**Caution:**" in text
    trained = [row for part in ("train", "validation") for row in report["training"]["splits"][part]]
    assert len(report["training"]["heard"]) == 8 * len(set(trained))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["results"] == report["results"]
    speakers = report["training"]["splits"]
    assert not set(speakers["train"]) & set(speakers["test"]) and not set(speakers["train"]) & set(
        speakers["validation"]
    )
    heard = pipeline("audio-classification", model=str(tmp_path / "out"))(tone("sadness", 5, 9), top_k=4)
    assert {score["label"] for score in heard} == set(EMOTIONS)


@pytest.mark.parametrize("encoder", ["Whisper", "wav2vec 2.0"])
def test_another_encoder_trains_by_the_same_command_and_is_calibrated(tmp_path, corpus, encoder):
    checkpoint = write_checkpoint(encoder, tmp_path / "encoder", torch.float16)
    report = run.main(
        [
            *("--model_name_or_path", str(checkpoint), "--dataset_name", str(corpus), "--noisy_copies", "1"),
            *("--layer_combination", "concatenate", "--num_train_epochs", "8", "--use_cpu", "True"),
            *("--report_to", "none", "--disable_tqdm", "True"),
            *("--output_dir", str(tmp_path / "out")),
        ]
    )
    assert report["results"][0]["metrics"]["uar"]["value"] > 0.5  # chance is 0.25
    model = EdrlMeaForAudioClassification.from_pretrained(tmp_path / "out").eval()
    assert model.stage == "alignment" or model.ends_in_disentanglement
    assert model.config.temperature == pytest.approx(report["models"][0]["calibration"]["temperature"])
    predicted = model.predict(tone("sadness", 5, 9), coverage=0.9, speech_gate=None)
    assert predicted.emotions is not None  # by the thresholds that training stored


def test_a_temperature_divides_the_logits_and_changes_no_answer(tiny_model):
    for arrangement in ("linear", "edrl", "edrl_mea"):
        model = tiny_model(arrangement)
        statistics = torch.randn(4, model.config.n_layers, model.config.statistics_size)
        with torch.no_grad():
            before = model(layer_statistics=statistics).logits
            for temperature in (2.0, 1.5):
                model.set_temperature(temperature)
                torch.testing.assert_close(model(layer_statistics=statistics).logits, before / temperature)


BACKBONE_LEARNS = {
    "all": ["--freeze_backbone", "False", "--freeze_feature_encoder", "False"],
    "not the convolutions": ["--freeze_backbone", "False"],
    "the last layer": ["--keep_last_n_layers", "1", "--max_length_seconds", "0.3"],
}


@pytest.mark.parametrize("how", BACKBONE_LEARNS.values(), ids=BACKBONE_LEARNS)
def test_as_much_of_the_backbone_learns_as_is_unfrozen(tmp_path, corpus, backbone, how):
    report = run.main(
        [
            *("--model_name_or_path", str(backbone), "--dataset_name", str(corpus), "--arrangement", "edrl_mea"),
            *("--output_dir", str(tmp_path), "--num_train_epochs", "2", "--use_cpu", "True", "--noisy_copies", "1"),
            *("--report_to", "none", "--disable_tqdm", "True", "--per_device_train_batch_size", "16", *how),
        ]
    )
    assert report["models"][0]["stage"] == "alignment"
    before, after = new_model(backbone).backbone, EdrlMeaForAudioClassification.from_pretrained(tmp_path).backbone
    changed = {name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))}
    assert any(name.startswith("encoder.layers.1.") for name in changed)
    assert any(name.startswith("encoder.layers.0.") for name in changed) == ("--freeze_backbone" in how)
    assert any(name.startswith("feature_extractor.") for name in changed) == ("--freeze_feature_encoder" in how)


def test_gradient_accumulation_is_a_mean_over_its_steps(tmp_path, backbone):
    """transformers leaves the division to models that take its count of items, as a forward with **kwargs seems to."""
    losses = []
    for steps in (1, 4):
        torch.manual_seed(0)
        model = new_model(backbone, arrangement="edrl", decorrelation_weight=0.0, shared_invariance_weight=0.0)
        args = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
            logging_steps=1,
        )
        trainer = Trainer(model, args, train_dataset=Recordings(model, list(EMOTIONS), 16))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_bad_recordings_stop_the_run_before_it_starts_or_are_left_out(tmp_path, backbone, capsys):
    corpus = write_corpus(tmp_path / "tones", n_speakers=6)
    for name in ("anger_0_0.wav", "sadness_5_2.wav"):
        (corpus / name).write_bytes(b"no audio")
    command = [
        *("--model_name_or_path", str(backbone), "--dataset_name", str(corpus), "--output_dir", str(tmp_path / "out")),
        *("--num_train_epochs", "1", "--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True"),
    ]
    with pytest.raises(RecordingError, match="2 recordings(.|\n)*anger_0_0.wav(.|\n)*sadness_5_2.wav(.|\n)*skip"):
        run.main(command)
    assert not (tmp_path / "out" / "run.json").exists()
    report = run.main([*command, "--on_bad_audio", "skip"])
    assert len(report["skipped_recordings"]) == 2
    splits = json.loads((tmp_path / "out" / "report.json").read_text())["training"]
    assert sum(entry["recordings"] for entry in splits["corpora"]) + report["results"][0]["n_recordings"] == 70


def test_a_corpus_with_some_of_the_models_emotions_is_tested_by_the_models_ids(tmp_path):
    labels = [*EMOTIONS, "surprise"]
    corpus = write_corpus(tmp_path / "other", n_speakers=1, emotions=["neutral", "sadness"])
    _, data_args, _, _ = parse_arguments(["--output_dir", str(tmp_path / "out")])
    other = run.read_other_corpus(str(corpus), data_args, labels)
    assert other.features["label"].names == labels
    named = {
        Path(path).name.split("_")[0]: labels[label] for path, label in zip(other["audio"], other["label"], strict=True)
    }
    assert named == {"neutral": "neutral", "sadness": "sadness"}


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "shares"])
def test_a_dataset_that_was_saved_is_split_by_speaker(kind, tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_csv(str(corpus / "metadata.csv"), cache_dir=str(tmp_path / "arrow"))
    sounds = [{"bytes": (corpus / name).read_bytes(), "path": name} for name in table["file_name"]]
    emotions = [
        {e: 0.7 if e == own else 0.1 for e in EMOTIONS} if kind == "shares" else own for own in table["emotion"]
    ]
    columns = {"audio": sounds, "emotion": emotions, "speaker": list(table["speaker"])}
    saved = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    place = tmp_path / ("tones.parquet" if kind == "parquet" else "tones")
    saved.to_parquet(str(place)) if kind == "parquet" else saved.save_to_disk(str(place))
    _, arguments, _, _ = parse_arguments(["--dataset_name", str(place), "--use_cpu", "True"])
    splits = run.read_splits(arguments, seed=0)
    assert sum(map(len, splits.values())) == len(table)
    assert splits["train"].features["label"].names == sorted(EMOTIONS)
    speakers = [set(part["speaker"]) for part in splits.values()]
    assert all(speakers) and sum(map(len, speakers)) == len(set.union(*speakers)) == len(set(table["speaker"]))


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open({"learning_rate": 0.1, "data": {"train": "1"}}, {})
    folder.open({"learning_rate": 0.1, "data": {"train": "1"}}, {})
    with pytest.raises(RunError, match="learning_rate 0.1 → 0.2"):
        folder.open({"learning_rate": 0.2, "data": {"train": "1"}}, {})


def test_the_cache_says_what_to_do_where_it_cannot_be_written(tmp_path, corpus, backbone):
    audio = sorted(str(path) for path in corpus.glob("*.wav"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="--embedding_cache"):
        EmbeddingCache(new_model(backbone), tmp_path / "file")
    cache = EmbeddingCache(new_model(backbone), tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a disk with no room for a chunk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(CacheError, match="Make room"):
            cache.embed(audio)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(cache.folder.iterdir())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--keep_last_n_layers", "2", "--freeze_backbone", "False"], "keep_last_n_layers"),
        (["--freeze_feature_encoder", "False"], "freeze_backbone=False"),
        (["--max_length_seconds", "5"], "frozen backbone embeds whole"),
        (["--keep_last_n_layers", "2", "--arrangement", "linear"], "nothing by gradients"),
        (["--rir_dir", "rooms"], "noisy_copies"),
        (["--push_to_hub", "True"], "hub_model_id"),
        (["--save_total_limit", "1"], "damaged"),
    ],
)
def test_contradictory_settings_are_refused(flags, named):
    with pytest.raises(SystemExit, match=named):
        parse_arguments(["--use_cpu", "True", *flags])


class Recordings(torch.utils.data.Dataset):
    """What a user of the stock Trainer has: waveforms and labels."""

    def __init__(self, model, emotions, n: int = 24):
        extract = model.feature_extractor()
        self.rows = []
        for i in range(n):
            waveform = tone(emotions[i % len(emotions)], i % 5, i)
            inputs = extract(waveform, sampling_rate=16_000, return_tensors="pt")
            self.rows.append({name: tensor[0] for name, tensor in inputs.items()} | {"labels": i % len(emotions)})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


@pytest.mark.parametrize("arrangement", ["edrl", "edrl_mea"])
def test_the_stock_trainer_fine_tunes_to_a_new_label_set(tmp_path, backbone, arrangement):
    new_model(backbone, arrangement=arrangement).save_pretrained(tmp_path / "start")
    emotions = ["anger", "sadness"]
    model = EdrlMeaForAudioClassification.from_pretrained(
        tmp_path / "start", id2label=dict(enumerate(emotions)), ignore_mismatched_sizes=True
    )
    data = Recordings(model, emotions)
    args = arguments(tmp_path / "out", num_train_epochs=4, per_device_train_batch_size=8)
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[AlignmentCallback()])
    trainer.train()
    assert model.alignment is None or model.alignment.is_fitted
    predictions = trainer.predict(data)
    assert predictions.predictions.shape == (24, 2)
    assert (predictions.predictions.argmax(-1) == predictions.label_ids).mean() > 0.8


def test_the_cache_gives_the_same_embeddings_again_without_the_model(tmp_path, corpus, backbone, monkeypatch):
    model = new_model(backbone)
    audio = sorted(str(path) for path in corpus.glob("*.wav"))
    first = EmbeddingCache(model, tmp_path).embed(audio)
    monkeypatch.setattr(model, "embed_recordings", lambda *_: pytest.fail("embedded again"))
    assert torch.equal(EmbeddingCache(model, tmp_path).embed(audio), first)


def test_a_damaged_chunk_of_the_cache_is_computed_again(tmp_path, corpus, backbone):
    cache = EmbeddingCache(new_model(backbone), tmp_path)
    audio = sorted(str(path) for path in corpus.glob("*.wav"))
    first = cache.embed(audio)
    next(cache.folder.glob("*.npy")).write_bytes(b"half a file")
    assert torch.equal(cache.embed(audio), first)


def test_other_weights_do_not_share_a_cache(tmp_path, backbone):
    model = new_model(backbone)
    folder = EmbeddingCache(model, tmp_path).folder
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1e-3)
    assert EmbeddingCache(model, tmp_path).folder != folder


def test_all_broken_recordings_are_listed_at_once(tmp_path, backbone):
    audio = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for path in audio:
        Path(path).write_bytes(b"no audio")
    with pytest.raises(RecordingError, match="2 of 2(.|\n)*a.wav(.|\n)*b.wav"):
        EmbeddingCache(new_model(backbone), tmp_path / "cache").embed(
            [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
        )


def test_two_classes_get_the_probabilities_of_the_logistic_regression(backbone):
    model = EdrlMeaForAudioClassification.from_backbone(backbone, id2label={0: "low", 1: "high"}, arrangement="linear")
    data = embeddings(model)
    data.labels = data.labels % 2
    closed_form.fit_speech_embedding(model, data)
    closed_form.train_classifier(model, data)
    accuracy = (model(layer_statistics=data.layer_statistics).logits.argmax(-1) == data.labels).float().mean()
    assert accuracy > 0.9


def test_a_misspelled_setting_names_the_nearest_one():
    with pytest.raises(SystemExit, match="n_components"):
        parse_arguments(["--n_componets", "4"])


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text("n_components: 4\nblock_size: 8\ndataset_name: [a, b]\n")
    _, data, config, _ = parse_arguments([str(tmp_path / "config.yaml"), "--n_components", "6", "--use_cpu", "True"])
    assert (config.n_components, config.block_size, data.dataset_name) == (6, 8, ["a", "b"])
