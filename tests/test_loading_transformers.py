"""Folders of transformers by one command each: figures as a hand-written evaluation, any length in one file, bad folders in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_bert import save

from cli.main import main
from compress.errors import DataError
from compress.loading.data import open_data
from compress.loading.models import open_model
from compress.loading.preprocessing import Preprocessing, from_image_processor
from compress.runtimes.onnxruntime import Session

pytest.importorskip("transformers")


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.stderr
    return result.stderr if code else json.loads(result.stdout)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "bert"
    rows = save(folder)
    return folder, rows, f"text:{folder / 'reviews.csv'}?text=review&label=stars"


def test_figures_are_those_of_a_hand_written_evaluation(bert):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, rows, data = bert
    report = run("evaluate", f"hf:{folder}", "--data", data, "--json")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    test = open_data(data, tokenizer=str(folder)).test  # a fifth, drawn with the seed
    right, loss = 0, 0.0
    for index in test.indices:
        with torch.no_grad():
            logits = model(**tokenizer(rows[index][0], return_tensors="pt")).logits
        right += int(logits.argmax()) == int(rows[index][2])
        loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor([int(rows[index][2])])))
    row = report["rows"][0]
    assert 0.5 < right / len(test) < 1 and row["top1"] == right / len(test)
    assert row["loss"] == pytest.approx(loss / len(test), rel=1e-5)


def lengths(path, folder):
    session, model = Session(path, threads=1), open_model(f"hf:{folder}").model
    assert set(session.input_names) == {"input_ids", "attention_mask", "token_type_ids"}
    worst = 0.0
    for batch, length in ((1, 8), (3, 31), (2, 128)):
        ids = torch.randint(5, 24, (batch, length))
        feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        with torch.no_grad():
            expected = model(**feeds).logits.numpy()
        got = session.run(*(feeds[name] for name in session.input_names))[0]
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


def test_export_and_dynamic_quantization(bert, tmp_path):
    folder, _, data = bert
    run("export", f"hf:{folder}", "-o", tmp_path / "float.onnx", "--json")
    assert lengths(tmp_path / "float.onnx", folder) < 1e-4
    report = run("quantize", f"hf:{folder}", "--method", "dynamic", "--data", data, "-o", tmp_path / "d", "--json")
    assert report["rows"][1]["size_bytes"] < report["rows"][0]["size_bytes"]
    assert 0 < lengths(tmp_path / "d" / "model.onnx", folder) < 0.15
    with_files = run(
        "compare", tmp_path / "float.onnx", tmp_path / "d", "--data", f"{data}&tokenizer={folder}", "--json"
    )
    assert with_files["rows"][1]["top1"] == report["rows"][1]["top1"]


@pytest.mark.slow
def test_static_quantization_and_pruning(bert, tmp_path):
    folder, _, data = bert
    quick = ("--accuracy", "fast", "--no-tune-latency", "--threads", 1, "--json")
    run("quantize", f"hf:{folder}", "--data", data, "-o", tmp_path / "s", *quick)
    # Random weights: the largest logit is 0.03, and lengths that calibration never saw are among those compared.
    assert 0 < lengths(tmp_path / "s" / "model.onnx", folder) < 0.5
    options = ("--distill", "--finetune-epochs", "1", "-o", tmp_path / "p", "--json")
    report = run("prune", f"hf:{folder}", "--data", data, *options)
    assert report["rows"][-1]["parameters"] < 0.7 * report["rows"][0]["parameters"]
    compared = run("compare", f"hf:{folder}", tmp_path / "s", tmp_path / "p", "--data", data, "--json")
    assert compared["rows"][2]["top1"] == report["rows"][-1]["top1"]


def test_tables_of_every_kind(bert, tmp_path):
    folder, rows, _ = bert
    names = [(a, b, ("bad", "good")[int(y)]) for a, b, y in rows[:20]]
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(row) for row in [("p", "q", "y"), *names]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(dict(zip("pqy", row))) for row in names[:8]))
    data = open_data(f"text:{tmp_path / 'a.tsv'}?text=p,q&label=y&test={tmp_path / 'b.jsonl'}", tokenizer=str(folder))
    assert data.classes == ("bad", "good") and data.num_classes == 2 and data.sizes()["test"] == 8
    batch = next(iter(data.loader("test", batch_size=8)))
    assert batch["labels"].tolist() == [("bad", "good").index(row[2]) for row in names[:8]]
    assert batch["input_ids"].shape == batch["token_type_ids"].shape and batch["token_type_ids"].max() == 1
    longest = max(len(a.split()) + len(b.split()) + 3 for a, b, _ in names[:8])
    assert batch["input_ids"].shape[1] == longest and int(batch["attention_mask"].sum(1).min()) < longest
    cut = open_data(f"text:{tmp_path / 'b.jsonl'}?text=p&length=6", tokenizer=str(folder))
    assert next(iter(cut.loader("train")))["input_ids"].shape[1] <= 6


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?text=reveiw", "has no column 'reveiw'; did you mean 'review'"),
        ("?txet=review", "unknown option 'txet'; did you mean 'text'"),
        ("?text=review&label=other&length=x", "length 'x' is no positive number"),
        ("?text=a,b,c", "text names 3 columns"),
        ("?text=review&test=none.csv", "'none.csv' does not exist"),
    ],
)
def test_bad_tables(bert, query, message):
    folder = bert[0]
    with pytest.raises(DataError, match=message):
        open_data(f"text:{folder / 'reviews.csv'}{query}", tokenizer=str(folder))
    with pytest.raises(DataError, match="needs a tokenizer; name the model as hf:FOLDER"):
        open_data(f"text:{folder / 'reviews.csv'}?text=review")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("config.json", "model.safetensors"), "holds a tokenizer but no model"),
        (("model.safetensors",), "holds a config but no weights"),
        (("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"), "holds no model"),
    ],
)
def test_bad_folders(bert, gone, message, tmp_path):
    shutil.copytree(bert[0], tmp_path / "bert")
    for name in gone:
        (tmp_path / "bert" / name).unlink()
    said = run("export", f"hf:{tmp_path / 'bert'}", "-o", tmp_path / "x.onnx", code=2)
    assert message in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "x.onnx").exists()
    assert "is no folder" in run("export", f"hf:{tmp_path / 'nowhere'}", "-o", tmp_path / "x.onnx", code=2)


def test_truncated_weights_and_unknown_tasks(bert, tmp_path):
    shutil.copytree(bert[0], tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded: " in run("export", f"hf:{tmp_path / 'bert'}", "-o", tmp_path / "x.onnx", code=2)
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "architectures": ["BertForDreams"]}))
    assert "names BertForDreams" in run("export", f"hf:{tmp_path / 'bert'}", "-o", tmp_path / "x.onnx", code=2)


def test_an_image_model_reads_its_processor(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    processor = tmp_path / "preprocessor_config.json"
    stored = {"size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    processor.write_text(json.dumps(stored))
    assert open_model(f"hf:{tmp_path}").preprocessing == Preprocessing(
        (0.5,) * 3, (0.2,) * 3, (16, 16), None, "bicubic", suggested=True
    )
    processor.write_text("{")
    assert "preprocessor_config.json is no JSON" in run("export", f"hf:{tmp_path}", "-o", tmp_path / "x.onnx", code=2)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (256, 224, None, None)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, (224, 224), None, None)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, ((384, 384), None, None, None)),
        ({"size": 8, "do_resize": False, "image_mean": [0.5], "image_std": [0.5]}, (None, None, (0.5,), (0.5,))),
        ({"size": 8, "do_normalize": False, "image_mean": [0.5]}, (8, None, None, None)),
        # Inception's pixels lie in [−1, 1]: x·255 / 127.5 − 1
        ({"size": 8, "rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [1.0]}, (8, None, (0.5,), (0.5,))),
        ({"size": 8, "do_rescale": False, "image_mean": [127.5], "image_std": [51.0]}, (8, None, (0.5,), (0.2,))),
    ],
    ids=["crop", "small", "large", "as is", "raw", "factor", "bytes"],
)
def test_what_image_processors_store(stored, expected):
    read = from_image_processor(stored)
    resize, crop, mean, std = expected
    assert (read.resize, read.crop) == (resize, crop)
    assert read.mean == (None if mean is None else pytest.approx(mean)) and read.std == (
        None if std is None else pytest.approx(std)
    )
