import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openpyxl
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from Auto_encoder import AutoEncoder
from datasets import EXTENSIONS

ROOT = Path(__file__).resolve().parents[1]
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

# Formats, depths, letter cases, names that clash, and one that a spreadsheet could compute.
TREE = (
    "a/1.png", "a/1.jpg", "b/1.png", "b/1.PNG.jpeg", "b/UPPER.PNG", "b/c/grey.png", "b/c/deep.png",
    "b/c/d/palette.GIF", "e/plain.bmp", "e/tagged.TIF", "e/small.webp", "=1+1.png", "e/ünï 1.png",
)  # fmt: skip


def write_tree(folder: Path, *, edge: int = 64) -> Path:
    """Write images of every kind, each with its own content."""
    for number, name in enumerate(TREE):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((edge, edge), Image.Resampling.BICUBIC)
        if "grey" in name:
            image = image.convert("L")
        if "deep" in name:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 // 2)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def read_independently(path: Path) -> NDArray[np.float64]:
    """(H, W, 3) in [0, 1]."""
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return np.stack([np.asarray(image).astype(np.float64) / 65535] * 3, axis=-1)
        return np.asarray(image.convert("RGB")).astype(np.float64) / 255


def run(command: str | list[str], folder: Path) -> str:
    """Run in a shell as a user does; returns the standard output."""
    line = command if isinstance(command, str) else shlex.join(command)
    answer = subprocess.run(
        line, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert answer.returncode == 0, answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr
    return answer.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a csv by their headings."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def script(name: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *flags]


class Finished(NamedTuple):
    folder: Path
    console: str  # of training
    evaluation: str  # its command, as it was printed
    evaluated: str  # console


@pytest.fixture(scope="module")
def ssim(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Train with SSIM from another folder, then run the command that training printed."""
    folder = tmp_path_factory.mktemp("a user's folder")
    train, test = write_tree(folder / "D"), write_tree(folder / "T")
    flags = shlex.split(
        "--num_epochs 2 --batch_size_train 8 --tile_size 64 --num_workers 0 --save_interval 1 "
        "--model_saved_location_ssim OUT --training_loss_file_ssim OUT/loss.csv "
        "--precision float32 --GPUs=''"
    )
    console = run(script("Training_SSIM.py", "--folder_path_train", str(train), *flags), folder)
    evaluation = console.partition("Evaluate it with:\n")[2].strip()
    evaluated = run(f"{evaluation} --folder_path_test {shlex.quote(str(test))}", folder)
    return Finished(folder, console, evaluation, evaluated)


# Training as a user runs it


def test_training_announces_every_epoch_with_its_average_loss(ssim: Finished) -> None:
    lines = [line for line in ssim.console.splitlines() if line.startswith("Epoch ")]
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.match(rf"Epoch {number}/2, Average Loss: \d+\.\d{{4}}(, |$)", line)


def test_training_writes_the_files_of_the_reference_and_a_curve(ssim: Finished) -> None:
    found = {path.name for path in (ssim.folder / "OUT").iterdir()}
    assert {
        "Model_AE_epoch_001.pth",
        "Model_AE_epoch_002.pth",
        "Final_Model_AE_SSIM.pth",
        "Final_Model_AE_SSIM.json",
        "loss.csv",
        "loss.png",
    } <= found
    assert not any(name.endswith(".partial") for name in found)
    with Image.open(ssim.folder / "OUT/loss.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_the_loss_file_says_what_the_console_says(ssim: Finished) -> None:
    text = (ssim.folder / "OUT/loss.csv").read_text(encoding="utf-8")
    assert text.startswith("Epoch,Loss")
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["Epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        said = f"Epoch {row['Epoch']}/2, Average Loss: {float(row['Loss']):.4f}"
        assert said in ssim.console


def test_the_loss_of_the_ssim_script_is_that_of_ssim(ssim: Finished) -> None:
    rows = rows_of(ssim.folder / "OUT/loss.csv")
    assert all(0.5 < float(row["Loss"]) < 1.2 for row in rows)


def test_the_final_model_loads_strictly_and_as_data(ssim: Finished) -> None:
    saved = torch.load(ssim.folder / "OUT/Final_Model_AE_SSIM.pth", weights_only=True)
    AutoEncoder().load_state_dict(saved, strict=True)


# Evaluation by the command that training printed


def test_training_prints_a_command_that_evaluates_its_model(ssim: Finished) -> None:
    assert "Evaluation_SSIM.py" in ssim.evaluation
    assert "\n" not in ssim.evaluation
    assert "--model_path_ssim OUT/Final_Model_AE_SSIM.pth" in ssim.evaluation
    assert "--precision float32" in ssim.evaluation


def rows_of_workbook(ssim: Finished) -> list[tuple[object, ...]]:
    path = ssim.folder / "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx"
    return list(openpyxl.load_workbook(path)["Metrics"].iter_rows(values_only=True))


def test_the_workbook_has_a_row_for_every_image_a_summary_and_the_run(ssim: Finished) -> None:
    path = ssim.folder / "reconstructed_images/validation_reconstruction_metrics_ssim.xlsx"
    book = openpyxl.load_workbook(path)
    assert len(book.sheetnames) == 3
    rows = rows_of_workbook(ssim)
    assert rows[0][:4] == ("Image Path", "MSE", "PSNR", "SSIM")
    assert [row[0] for row in rows[1:]] == sorted(str(ssim.folder / "T" / name) for name in TREE)
    run_sheet = dict(book.worksheets[2].iter_rows(min_row=2, values_only=True))
    assert run_sheet["model"] == "OUT/Final_Model_AE_SSIM.pth"
    assert run_sheet["precision"] == "float32"
    assert run_sheet["test images.found"] == str(len(TREE))


def test_the_csv_holds_the_rows_of_the_workbook(ssim: Finished) -> None:
    path = ssim.folder / "reconstructed_images/validation_reconstruction_metrics_ssim.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    book = rows_of_workbook(ssim)
    assert rows[0] == list(book[0])
    assert len(rows) == len(book)
    for row, cells in zip(rows[1:], book[1:], strict=True):
        assert row[0] == cells[0]
        assert [float(text) for text in row[1:]] == list(cells[1:])


def test_the_figures_are_those_of_an_independent_computation(ssim: Finished) -> None:
    model = AutoEncoder()
    weights = torch.load(ssim.folder / "OUT/Final_Model_AE_SSIM.pth", weights_only=True)
    model.load_state_dict(weights, strict=True)
    model.eval()
    for path, mse, psnr, ssim_value, width, height in rows_of_workbook(ssim)[1:]:
        original = read_independently(Path(str(path)))
        image = torch.from_numpy(original.transpose(2, 0, 1)).float()
        with torch.no_grad():
            decoded = model(((image - MEAN) / STD)[None])[0]
        decoded = decoded.double().numpy().transpose(1, 2, 0)
        similarity = structural_similarity(
            original, decoded, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert mse == pytest.approx(mean_squared_error(original, decoded), rel=1e-6)
        assert psnr == pytest.approx(
            peak_signal_noise_ratio(original, decoded, data_range=1.0), rel=1e-6
        )
        assert ssim_value == pytest.approx(similarity, abs=1e-5)
        assert (width, height) == (64, 64)


def test_every_image_has_a_picture_of_its_own_in_the_folders_of_the_images(ssim: Finished) -> None:
    folder = ssim.folder / "reconstructed_images/SSIM"
    pictures = [path for path in folder.rglob("*") if path.is_file()]
    assert len(pictures) == len(TREE)
    assert (folder / "b/c/d/palette_comparison.png").is_file()
    assert (folder / "a/1.png_comparison.png").is_file()
    assert (folder / "a/1.jpg_comparison.png").is_file()
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width >= 2 * 64


def test_evaluation_says_the_figures_and_where_they_are(ssim: Finished) -> None:
    assert re.search(r"SSIM +mean \d\.\d+", ssim.evaluated)
    assert "validation_reconstruction_metrics_ssim.xlsx" in ssim.evaluated


def test_a_run_is_resumed_by_a_flag(ssim: Finished) -> None:
    folder = ssim.folder
    flags = shlex.split(
        "--num_epochs 3 --batch_size_train 8 --tile_size 64 --num_workers 0 --resume auto "
        "--model_saved_location_ssim OUT --training_loss_file_ssim more/loss.csv "
        "--precision float32 --GPUs '' --folder_path_train D"
    )
    console = run(script("Training_SSIM.py", *flags), folder)
    assert "Resuming OUT/Last_Model_AE.pth after epoch 2" in console
    assert "Epoch 3/3, Average Loss: " in console
    assert "Epoch 2/3" not in console
    assert [row["Epoch"] for row in rows_of(folder / "more/loss.csv")] == ["1", "2", "3"]


# In this process: the other objective, and what users get wrong


class Answer(NamedTuple):
    code: int
    out: str
    error: str  # the only line on stderr


Call = Callable[..., Answer]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Call the main function of a script in an empty folder, with settings of a short run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))

    def main(name: str, **settings: object) -> Answer:
        usual: dict[str, object] = {"GPUs": "", "num_workers": 0, "precision": "float32"}
        if name.startswith("Training"):
            usual |= {"tile_size": 32, "num_epochs": 1, "batch_size_train": 4}
            usual |= {"folder_path_train": "D", "validation_fraction": 0.0}
        else:
            usual |= {"folder_path_test": "T"}
        argv = [part for n, v in (usual | settings).items() for part in (f"--{n}", str(v))]
        capsys.readouterr()
        code = importlib.import_module(name).main(argv)
        out, error = capsys.readouterr()
        assert (code != 0) == error.startswith("error: ")
        assert error.count("\n") == (code != 0)
        return Answer(code, out, error.strip())

    return main


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the published form, untrained, without a record."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save(AutoEncoder().state_dict(), path)
    return str(path)


@pytest.fixture
def tiles(write_images: Callable[..., Path], tmp_path: Path) -> None:
    """A few images to train on in `D` and to test with in `T`."""
    write_images(tmp_path / "D", 4, edge=32)
    write_images(tmp_path / "T", 3, edge=32, seed=1)


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_scripts_of_mse_train_with_mse_and_use_names_of_their_own(
    call: Call, tiles: None, tmp_path: Path
) -> None:
    trained = call("Training_MSE")
    assert trained.code == 0
    (row,) = rows_of(tmp_path / "training_loss_mse.csv")
    assert 0.01 < float(row["Loss"]) < 0.3
    assert "Evaluation_MSE.py" in trained.out
    model = "checkpoints/MSE/Final_Model_AE_MSE.pth"
    assert f"--model_path_mse {model}" in trained.out
    assert call("Evaluation_MSE", model_path_mse=model, tile_size=32).code == 0
    found = written(tmp_path / "reconstructed_images")
    assert "validation_reconstruction_metrics_mse.xlsx" in found
    assert "validation_reconstruction_metrics_mse.csv" in found
    assert sum(name.startswith("MSE/") for name in found) == 3


@pytest.mark.parametrize("name", ["Training_SSIM", "Evaluation_MSE"])
@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("num_epoch", "3", "unknown setting 'num_epoch' .* did you mean 'num_epochs'"),
        ("num_epochs", "many", "num_epochs must be .*integer, got 'many'"),
        ("num_epochs", "0", "num_epochs must be greater than or equal to 1, got 0"),
        ("precision", "float8", "precision must be .*'float32'.*, got 'float8'"),
        ("tile_size", "10", "tile_size must be at least 11 pixels.*, got 10"),
        ("GPUs", "one", "GPUs must be numbers .*, got 'one'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_value_and_rule(
    name: str, setting: str, value: str, said: str, call: Call
) -> None:
    answer = call(name, **{setting: value})
    assert answer.code == 2
    assert re.search(said, answer.error)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("Training_SSIM", "folder_path_train"),
        ("Training_SSIM", "folder_path_validation"),
        ("Evaluation_SSIM", "folder_path_test"),
    ],
)
@pytest.mark.parametrize("content", ["missing", "empty", "no images"])
def test_a_folder_without_images_is_refused_saying_what_was_looked_for(
    name: str, setting: str, content: str, call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    if content != "missing":
        (tmp_path / "F/sub").mkdir(parents=True)
    if content == "no images":
        (tmp_path / "F/notes.txt").write_text("no image", encoding="utf-8")
    path = {"model_path_ssim": model_file} if name.startswith("Evaluation") else {}
    answer = call(name, **{setting: "F"}, **path)
    assert answer.code == 2
    assert f"{setting} must be a folder of images: F: no " in answer.error
    assert all(extension in answer.error for extension in EXTENSIONS)


def test_a_file_in_place_of_a_folder_is_refused(call: Call, tiles: None, tmp_path: Path) -> None:
    (tmp_path / "F").write_bytes(b"")
    answer = call("Training_MSE", folder_path_train="F")
    assert answer.code == 2
    assert "folder_path_train must be a folder of images: F: not a folder" in answer.error


@pytest.mark.parametrize("objective", ["MSE", "SSIM"])
def test_a_missing_model_is_refused_saying_how_to_get_one(
    objective: str, call: Call, tiles: None, tmp_path: Path
) -> None:
    low = objective.lower()
    answer = call(f"Evaluation_{objective}", **{f"model_path_{low}": "none.pth"})
    assert answer.code == 2
    assert "'none.pth', which is missing" in answer.error
    assert f"Training_{objective}.py" in answer.error
    assert f"--model_path_{low} FILE" in answer.error
    assert not (tmp_path / "reconstructed_images").exists()


class RunsACommand:
    """Unpickled with trust, this creates a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch proof",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text", "no readable PyTorch file"),
        ("code", "no readable PyTorch file"),
        ("list", "holds list, expected a dict of weights"),
        ("numbers", "holds 'epoch', 'loss', expected the weights of a network"),
        ("other", "holds another network: it has 2 weights, expected 79; it lacks decoder.0.bias"),
        ("wider", r"decoder.0.bias is \(7,\), expected \(512,\)"),
        ("nan", "encoder.0.bias holds values that are not finite"),
    ],
)
def test_a_file_that_is_no_model_of_ours_is_refused_saying_what_it_holds(
    content: str, said: str, call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    weights = torch.load(model_file, weights_only=True)
    broken = torch.full_like(weights["encoder.0.bias"], torch.nan)
    contents: dict[str, object] = {
        "code": RunsACommand(),
        "list": [1, 2],
        "numbers": {"epoch": 3, "loss": 0.1},
        "other": torch.nn.Linear(2, 2).state_dict(),
        "wider": weights | {"decoder.0.bias": torch.zeros(7)},
        "nan": weights | {"encoder.0.bias": broken},
    }
    if content == "text":
        (tmp_path / "a.pth").write_text("no model", encoding="utf-8")
    else:
        torch.save(contents[content], tmp_path / "a.pth")
    answer = call("Evaluation_SSIM", model_path_ssim="a.pth", tile_size=32)
    assert answer.code == 2
    assert "a.pth" in answer.error
    assert re.search(said, answer.error)
    assert not (tmp_path / "proof").exists()
    assert not list(tmp_path.rglob("*.xlsx"))


# Images that cannot be read


def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:60])


def test_training_skips_an_unreadable_image_and_lists_it_at_the_end(
    call: Call, tiles: None, tmp_path: Path
) -> None:
    damage(tmp_path / "D/a/0.png")
    answer = call("Training_MSE")
    assert answer.code == 0
    end = answer.out.partition("Skipped 1 unreadable image")[2]
    assert "D/a/0.png" in end


def test_evaluation_skips_an_unreadable_image_lists_it_and_never_scores_it(
    call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    damage(tmp_path / "T/a/0.png")
    answer = call("Evaluation_MSE", model_path_mse=model_file, tile_size=32)
    assert answer.code == 0
    assert "T/a/0.png" in answer.out.partition("Skipped 1 unreadable image")[2]
    (path,) = tmp_path.rglob("*.csv")
    assert [row["Image Path"] for row in rows_of(path)] == ["T/a/2.png", "T/b/1.png"]
    (book,) = tmp_path.rglob("*.xlsx")
    run_sheet = dict(openpyxl.load_workbook(book).worksheets[2].iter_rows(values_only=True))
    assert run_sheet["test images.unreadable"] == "1"
    assert "T/a/0.png" in str(run_sheet["skipped.1"])


@pytest.mark.parametrize("name", ["Training_MSE", "Evaluation_MSE"])
def test_an_unreadable_image_stops_the_run_where_the_setting_says_so(
    name: str, call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    damage(tmp_path / "D/a/0.png", tmp_path / "T/a/0.png")
    path = {"model_path_mse": model_file} if name.startswith("Evaluation") else {}
    answer = call(name, unreadable_images="stop", tile_size=32, **path)
    assert answer.code == 2
    assert "unreadable image: " in answer.error
    assert "a/0.png" in answer.error
    assert not [n for n in written(tmp_path) if n.endswith((".xlsx", "s/MSE.csv", "Final"))]


@pytest.mark.parametrize("name", ["Training_MSE", "Evaluation_MSE"])
def test_a_folder_of_unreadable_images_is_refused(
    name: str, call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    damage(*(tmp_path / "D").rglob("*.png"), *(tmp_path / "T").rglob("*.png"))
    path = {"model_path_mse": model_file} if name.startswith("Evaluation") else {}
    answer = call(name, tile_size=32, **path)
    assert answer.code == 2
    assert re.search(r"none of the \d (training|test) images can be read", answer.error)
    assert not [n for n in written(tmp_path) if n.endswith((".xlsx", ".csv", ".pth", ".partial"))]


# Places that cannot be written to


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("Training_MSE", "model_saved_location_mse", "taken/out"),
        ("Training_MSE", "model_saved_location_mse", "taken"),
        ("Training_MSE", "model_saved_location_mse", "/dev/null/x"),
        ("Training_MSE", "training_loss_file_mse", "taken/loss.csv"),
        ("Training_MSE", "training_loss_file_mse", "D"),
        ("Evaluation_MSE", "recon_output_mse", "taken"),
        ("Evaluation_MSE", "reconstruction_metrics_mse", "taken/m.xlsx"),
        ("Evaluation_MSE", "reconstruction_metrics_mse", "folder.xlsx"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    name: str, setting: str, value: str, call: Call, tiles: None, model_file: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_bytes(b"a file")
    (tmp_path / "folder.xlsx").mkdir()
    path = {"model_path_mse": model_file} if name.startswith("Evaluation") else {}
    answer = call(name, tile_size=32, **{setting: value}, **path)
    assert answer.code == 2
    assert setting in answer.error
    assert value.partition("/loss")[0].partition("/m.")[0] in answer.error
    assert "Epoch 1" not in answer.out
    assert "Evaluating" not in answer.out


# Numbers that are not finite


def test_a_loss_that_is_not_finite_is_told_and_the_last_checkpoint_stays(
    call: Call, tiles: None, tmp_path: Path
) -> None:
    assert call("Training_MSE", batch_size_train=2).code == 0
    last = tmp_path / "checkpoints/MSE/Last_Model_AE.pth"
    before = last.read_bytes()
    answer = call(
        "Training_MSE", batch_size_train=2, num_epochs=3,
        learning_rate=1e30, gradient_clip=0.0, warmup_fraction=0.0,
    )  # fmt: skip
    assert answer.code == 2
    assert re.search(r"not finite in epoch \d, step \d", answer.error)
    saved = torch.load(last, weights_only=True)
    assert all(value.isfinite().all() for value in saved["model_state_dict"].values())
    if saved["run"]["state"]["history"] and "epoch 1" in answer.error:
        assert last.read_bytes() == before


# What a user sees of a process of its own


def test_a_user_error_ends_the_process_with_2_and_one_line(tmp_path: Path) -> None:
    answer = subprocess.run(
        script("Training_SSIM.py", "--num_epoch", "3"),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.splitlines() == [
        "error: unknown setting 'num_epoch' in the command line; did you mean 'num_epochs'?"
    ]
    assert not list(tmp_path.iterdir())


def test_evaluation_without_a_model_ends_the_process_with_2(tmp_path: Path) -> None:
    answer = subprocess.run(
        script("Evaluation_MSE.py", "--GPUs", "", "--model_path_mse", "nowhere/m.pth"),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "nowhere/m.pth" in answer.stderr
