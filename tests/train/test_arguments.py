"""Settings from a file and from flags: which win, what cannot be, and which of them a report repeats."""

import pytest

from train.arguments import CHOICES, given_settings, parse_arguments, resolved


def test_flags_win_over_the_file_whose_values_are_text(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset_name: [001, b]\nblock_size: 8\nnoisy_copies: 2\nrir_dir: null\n")
    model, data, config, training = parse_arguments(
        [str(tmp_path / "recipe.yaml"), "--block_size", "4", "--use_cpu", "True", "--output_dir", str(tmp_path)]
    )
    assert data.dataset_name == ["001", "b"] and data.noisy_copies == 2 and data.rir_dir is None
    assert config.block_size == 4 and config.n_components is None


def test_a_report_repeats_what_was_given_and_no_place(tmp_path):
    (tmp_path / "backbone").mkdir()
    flags = ["--noisy_copies", "2", "--noise_dir", str(tmp_path), "--n_components", "8", "--seed", "3"]
    flags += ["--model_name_or_path", str(tmp_path / "backbone"), "--output_dir", str(tmp_path), "--use_cpu", "True"]
    arguments = parse_arguments(flags)
    given = given_settings(arguments)
    assert given.items() >= {"noisy_copies": 2, "n_components": 8, "seed": 3, "model_name_or_path": "backbone"}.items()
    assert not {"noise_dir", "output_dir", "dataset_name"} & set(given)
    decides = resolved(arguments)
    assert decides["noise_dir"] == str(tmp_path) and "output_dir" not in decides


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--label_scheme", "four"], "Did you mean four_emotions"),
        (["--arrangement", "edrl_me"], "Did you mean edrl_mea"),
        (["--layer_combination", "concatenat"], "Did you mean concatenate"),
        (["--layer_combination", "concat"], "Did you mean concatenate"),
        (["--on_leak", "ignore"], "error, drop"),
        (["--on_bad_audio", "ignore"], "error, skip"),
        (["--eval_strategy", "epochs"], "epoch"),
        (["--save_strategy", "epochs"], "epoch"),
        (["--logging_strategy", "epochs"], "epoch"),
        (["--optim", "adam"], "adamw_torch"),
        (["--lr_scheduler_type", "cosin"], "cosine"),
        (["--seed", "one"], "seed"),
        (["--keep_given_splits", "perhaps"], "true/false"),
        (["--bf16_full_eval", "True"], "GPU"),
        (["--fp16_full_eval", "True"], "GPU"),
        (["--noise_dir", "nowhere"], "nowhere"),
        (["--train_sampling_strategy", "sequential"], "random or group_by_length"),
        (["--train_sampling_strategy", "group_by_length"], "frozen backbone"),
        (["--noisy_copies", "1", "--rir_dir", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(flags, named):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--use_cpu", "True", *flags])
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message and named in message


def test_every_choice_of_ours_is_known_to_be_one():
    assert {"arrangement", "classifier", "layer_combination", "label_scheme", "on_leak"} <= set(CHOICES)
    for name in CHOICES:
        with pytest.raises(SystemExit, match=f"error: {name}=nonsense: choose one of"):
            parse_arguments(["--use_cpu", "True", f"--{name}", "nonsense"])
