"""The `lucid` command: what it prints, how it fails, what it imports."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import lucid
import lucid.models as models
from lucid.cli import app, streams
from lucid.cli.errors import one_line_errors
from lucid.cli.streams import answer_each, read_batches

ROOT = Path(__file__).resolve().parents[1]
VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "sun", "rises", "in", "east", ".", "el", "##ec", "##tron", "a", "b", "no", "here"),
]
MASKED = "The [MASK] rises in the [MASK]."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint folder of a small random model."""
    lucid.manual_seed(1)
    model = models.bert_for_masked_lm_tiny(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.4,
    )
    model.tokenizer = models.BERTTokenizerFast(vocab=VOCAB)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> models.BERTForMaskedLM:
    return models.BERTForMaskedLM.from_pretrained(folder)


@pytest.fixture
def run(folder, monkeypatch):
    """Run a command in this process; the model is in the environment."""
    monkeypatch.setenv("LUCID_MODEL", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object, stdin: str | bytes = b""):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert "Traceback" not in result.output
        return result

    yield call
    lucid.set_num_threads(None)


def environment(**variables: str) -> dict[str, str]:
    """What a process of ours finds: these sources, and an output that is buffered as usual."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}, "PYTHONPATH": path, **variables}


def start(*arguments: object, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start the command as a process."""
    command = [sys.executable, "-m", "lucid.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env or environment(), **{"stdin": pipe, "stdout": pipe, "stderr": pipe, **options})


def fields(fill) -> dict:
    """A guess as JSON has it."""
    return json.loads(json.dumps({name: getattr(fill, name) for name in fill.__dataclass_fields__}))


class TestFillMask:
    def test_table(self, run, model):
        result = run("fill-mask", MASKED, "--top-k", 3)
        assert result.exit_code == 0 and result.stderr == ""
        for number, guesses in enumerate(model.fill_mask(MASKED, top_k=3), 1):
            assert f"{MASKED}  (mask {number} of 2)" in result.stdout
            for fill in guesses:
                assert f" {fill.score:.4f} │ {fill.token_str:<5}" in result.stdout
                assert f"│ {fill.sequence} " in result.stdout

    def test_json(self, run, model):
        texts = ["a [MASK]", MASKED]
        result = run("fill-mask", *texts, "--json", "-k", 2)
        records = [json.loads(line) for line in result.stdout.splitlines()]
        assert records == [
            {"text": text, "masks": [[fields(fill) for fill in guesses] for guesses in model.fill_mask(text, top_k=2)]} for text in texts
        ]

    def test_targets(self, run, model):
        result = run("fill-mask", "a [MASK]", "--targets", "sun, electron,b,the,in,no,here")
        (guesses,) = model.fill_mask("a [MASK]", top_k=7, targets=["sun", "electron", "b", "the", "in", "no", "here"])
        assert len(guesses) == 7  # all of them, though --top-k is 5
        places = [result.stdout.index(f"│ {fill.token_str} ") for fill in guesses]
        assert places == sorted(places)
        assert "pieces" in result.stdout and "pieces" not in run("fill-mask", "a [MASK]", "--targets", "sun").stdout

    def test_targets_of_a_file(self, run, tmp_path):
        (tmp_path / "words.txt").write_text("sun\n\nelectron\nb\n")
        result = run("fill-mask", "a [MASK]", "--json", "-k", 2, "--targets", f"@{tmp_path / 'words.txt'}")
        (guesses,) = json.loads(result.stdout)["masks"]
        assert len(guesses) == 2 and {fill["target"] for fill in guesses} < {"sun", "electron", "b"}

    def test_joint(self, run, model):
        found = model.fill_mask(MASKED, top_k=2, joint=True, beam_width=3)
        result = run("fill-mask", MASKED, "--joint", "-k", 2, "--beam-width", 3)
        for fill in found:
            assert f"{fill.log_prob:.4f} │ {' '.join(fill.words)}" in result.stdout
        result = run("fill-mask", MASKED, "--joint", "-k", 2, "--beam-width", 3, "--json")
        assert json.loads(result.stdout) == {"text": MASKED, "fillings": [fields(fill) for fill in found]}

    @pytest.mark.parametrize("joint", [[], ["--joint"]])
    def test_a_long_text_says_what_was_read(self, run, joint):
        text = "a " * 300 + "sun [MASK] rises" + " b" * 300
        result = run("fill-mask", text, *joint)
        assert "longer than the model can read: of its 603 tokens, 292 to 313 were read" in " ".join(result.stdout.split())
        assert "a a a sun" in result.stdout and len(result.stdout) < 3000

    def test_markup_in_a_text_is_text(self, run):
        result = run("encode", "[b]a[/b]")  # in the title and, piece by piece, in the rows
        assert result.exit_code == 0 and result.stdout.startswith("[b]a[/b] ")
        result = run("fill-mask", "[b]a[/b] [MASK]")
        assert "[b]a[/b] [MASK] " in result.stdout

    def test_threads(self, run):
        wanted = run("fill-mask", MASKED, "--json").stdout
        assert run("fill-mask", MASKED, "--json", "--threads", 3).stdout == wanted
        assert lucid.get_num_threads() == 3


class TestStreams:
    lines = f"{MASKED}\n\nno mask here\n   \r\na [MASK]\r\n".encode() + b"\xff [MASK]\nlast [MASK]"

    def test_a_long_line_says_what_was_read(self, run, tmp_path):
        lines = tmp_path / "lines.txt"
        lines.write_text("a " * 300 + "sun [MASK] rises" + " b" * 300 + "\na [MASK]\n")
        done = run("fill-mask", "--file", str(lines), "-k", "1")
        assert done.exit_code == 0
        assert [row.split("\t")[0] for row in done.stdout.splitlines()] == ["1", "2"]
        assert "line 1: The text is longer than the model can read" in done.stderr and "line 2" not in done.stderr

    def test_rows(self, run, model):
        result = run("fill-mask", "-", "-k", 2, stdin=self.lines)
        rows = [row.split("\t") for row in result.stdout.splitlines()]
        wanted = [
            [str(line), str(mask), f"{fill.score:.6g}", fill.token_str, fill.sequence]
            for line, text in ((1, MASKED), (5, "a [MASK]"), (7, "last [MASK]"))
            for mask, guesses in enumerate(model.fill_mask(text, top_k=2), 1)
            for fill in guesses
        ]
        assert rows == wanted
        assert result.exit_code == 1
        assert result.stderr.splitlines() == [
            "lucid: line 3: no [MASK] in 'no mask here': write [MASK] where a word is to be guessed",
            "lucid: line 6: not UTF-8: byte 0xff at offset 0 of the line",
            "lucid: 2 of 5 lines could not be answered",
        ]

    def test_json(self, run, model):
        result = run("fill-mask", "-", "--json", "-k", 1, stdin=self.lines)
        records = [json.loads(line) for line in result.stdout.splitlines()]
        assert [record["line"] for record in records] == [1, 3, 5, 6, 7]
        assert [record["text"] for record in records] == [MASKED, "no mask here", "a [MASK]", "\ufffd [MASK]", "last [MASK]"]
        assert [sorted(record.keys() - {"line", "text"}) for record in records] == [["masks"], ["error"], ["masks"], ["error"], ["masks"]]
        assert records[2]["masks"] == [[fields(fill) for fill in model.fill_mask("a [MASK]", top_k=1)[0]]]
        assert result.exit_code == 1 and result.stderr == "lucid: 2 of 5 lines could not be answered\n"

    def test_joint(self, run, model):
        result = run("fill-mask", "-", "--joint", "-k", 1, stdin=f"{MASKED}\n")
        (fill,) = model.fill_mask(MASKED, top_k=1, joint=True)
        assert result.stdout == f"1\t{fill.log_prob:.6f}\t{' '.join(fill.words)}\t{fill.sequence}\n"
        assert result.exit_code == 0 and result.stderr == ""

    def test_a_file_gives_what_a_pipe_gives(self, run, tmp_path):
        (tmp_path / "lines.txt").write_bytes(self.lines)
        piped, filed = run("fill-mask", "-", stdin=self.lines), run("fill-mask", "--file", tmp_path / "lines.txt")
        assert (filed.stdout, filed.stderr, filed.exit_code) == (piped.stdout, piped.stderr, 1)
        assert run("fill-mask", "--file", "-", stdin=self.lines).stdout == piped.stdout

    def test_batches_do_not_show(self, run, monkeypatch):
        text = "".join(f"{'sun ' * (i % 15)}a [MASK]\n" if i % 7 else "no mask\n" for i in range(24))
        whole = run("fill-mask", "-", "--json", "-k", 1, stdin=text)
        monkeypatch.setattr(streams, "_BYTES_AT_ONCE", 70)
        small = run("fill-mask", "-", "--json", "-k", 1, stdin=text)
        assert small.stdout == whole.stdout and small.stderr == whole.stderr
        assert len(whole.stdout.splitlines()) == 24

    def test_nothing(self, run):
        result = run("fill-mask", "-", stdin="")
        assert (result.stdout, result.stderr, result.exit_code) == ("", "", 0)

    def test_lines_are_numbered_whatever_is_read_at_once(self, tmp_path, monkeypatch):
        text = "one\n\n  \nfour\r\n\nlonger than what is read at once\nseven"
        (tmp_path / "lines.txt").write_text(text, newline="")
        for n_bytes in (1, 2, 3, 5, 1000):
            monkeypatch.setattr(streams, "_BYTES_AT_ONCE", n_bytes)
            with (tmp_path / "lines.txt").open("rb") as stream:
                batches = list(read_batches(stream))
            assert [(line.number, line.text) for lines, _ in batches for line in lines] == [
                (1, "one"),
                (4, "four"),
                (6, "longer than what is read at once"),
                (7, "seven"),
            ]
            assert sum(n for _, n in batches) <= len(text)

    def test_one_wrong_text_spoils_no_other(self):
        def answer(texts: list[str]) -> list[str]:
            if any(text in ("x", "y") for text in texts):
                raise ValueError("wrong")
            return [text.upper() for text in texts]

        assert answer_each(list("abxcdyy"), answer) == ["A", "B", "wrong", "C", "D", "wrong", "wrong"]
        assert answer_each([], answer) == []


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fill-mask", "no mask here"], "no [MASK] in 'no mask here': write [MASK] where a word is to be guessed"),
            (["fill-mask", "a [MASK]", "no mask"], "texts[1]: no [MASK] in 'no mask'"),
            (["fill-mask", "a [MASK]", "-m", "./nowhere"], "nowhere is no folder"),
            (["fill-mask", "a [MASK]", "-m", "."], "config.json is missing"),
            (["fill-mask", "--file", "nowhere.txt"], "nowhere.txt: No such file or directory"),
            (["fill-mask", "--file", "."], ".: Is a directory"),
            (["fill-mask", "-", "-k", "99"], "top_k must lie between 1 and the 18 words"),
            (["fill-mask", "-", "--targets", "sun,moon"], "target 'moon' is not in this vocabulary"),
            (["fill-mask", "-", "--targets", "@nowhere.txt"], "nowhere.txt: No such file or directory"),
            (["encode", "a", "-m", "."], "holds no tokenizer"),
            (["encode", "--file", "nowhere.txt"], "nowhere.txt: No such file or directory"),
            (["info", "./nowhere"], "nowhere is no folder"),
            (["info", "."], "config.json is missing"),
        ],
    )
    def test_are_one_line_and_exit_code_1(self, run, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = run(*arguments)
        assert result.exit_code == 1 and result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("lucid: ") and message in line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fill-mask"], "give a text in quotes"),
            (["fill-mask", "a [MASK]", "--file", "x"], "not both"),
            (["fill-mask", "-", "a"], "give it alone"),
            (["fill-mask", "a [MASK]", "--top-k", "0"], "--top-k"),
            (["fill-mask", "a [MASK]", "--targets", ", ,"], "has no words"),
            (["encode"], "give a text in quotes"),
            (["evaluate"], "Missing option"),
            (["fil-mask"], "No such command"),
            (["--bogus"], "No such option"),
        ],
    )
    def test_wrong_usage_is_exit_code_2(self, run, arguments, message):
        result = run(*arguments)
        assert result.exit_code == 2 and result.stdout == "" and message in " ".join(result.stderr.replace("│", " ").split())

    def test_a_broken_checkpoint(self, run, folder, tmp_path):
        broken = tmp_path / "broken"
        broken.mkdir()
        for name in ("config.json", "vocab.txt", "tokenizer.json"):
            (broken / name).write_bytes((folder / name).read_bytes())
        (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
        result = run("fill-mask", "a [MASK]", "-m", broken)
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and "model.safetensors" in result.stderr

    @pytest.mark.filterwarnings("default")
    def test_a_warning_is_one_line(self, run, model, tmp_path):
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        save_file({**tensors, "bert.unheard.of": tensors["cls.predictions.bias"]}, tmp_path / "model.safetensors")
        result = run("fill-mask", "a [MASK]", "-m", tmp_path)
        assert result.exit_code == 0
        assert result.stderr.splitlines() == [f"lucid: warning: {tmp_path.name}: the model has no place for bert.unheard.of"]

    def test_memory(self, capsys):
        with pytest.raises(typer.Exit) as exit_, one_line_errors():
            raise MemoryError
        assert exit_.value.exit_code == 1 and capsys.readouterr().err.startswith("lucid: out of memory")


class TestInfo:
    def test_facts(self, run, folder, model):
        facts = json.loads(run("info", folder, "--json").stdout)
        assert facts["parameters"] == model.parameter_size
        assert facts["n_tensors"] == len(load_file(folder / "model.safetensors"))
        assert (facts["layers"], facts["width"], facts["heads"], facts["words"], facts["positions"]) == (2, 16, 2, len(VOCAB), 24)
        assert facts["tokenizer"] == {"words": len(VOCAB), "special_tokens": model.tokenizer.all_special_tokens, "longest": None}
        assert (facts["loaded"], facts["tied"], facts["problem"]) == (model.load_report.n_loaded, True, None)
        assert facts["missing"] == facts["unexpected"] == facts["ignored"] == []
        assert facts["dtypes"] == {"F32": facts["n_tensors"]} and facts["n_bytes"] == 4 * facts["parameters"]

    def test_for_people(self, run, folder, model):
        result = run("info", folder)
        assert result.exit_code == 0
        assert f"{model.parameter_size:,}" in result.stdout
        assert "yes, all tensors; decoder and word table are tied" in result.stdout

    def test_tensors(self, run, folder):
        stored = load_file(folder / "model.safetensors")
        result = run("info", folder, "--tensors", "--json")
        listed = json.loads(result.stdout)["tensors"]
        assert {each["name"]: tuple(each["shape"]) for each in listed} == {name: array.shape for name, array in stored.items()}
        assert all(each["file"] == "model.safetensors" and each["dtype"] == "F32" for each in listed)
        rows = run("info", folder, "--tensors").stdout.split("\n\n")[1].splitlines()
        assert {row.split()[0] for row in rows} == set(stored)

    def test_what_would_not_load(self, run, folder, tmp_path):
        models.BERTForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        bias = tensors.pop("cls.predictions.transform.dense.bias")
        save_file({**tensors, "bert.unheard.of": bias, "bert.pooler.dense.bias": bias}, tmp_path / "model.safetensors")
        result = run("info", tmp_path)
        assert result.exit_code == 1
        rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
        assert "no: tensors are missing" in rows["loads"]
        assert rows["missing"].strip() == "cls.predictions.transform.dense.bias"
        assert rows["unexpected"].strip() == "bert.unheard.of" and rows["not needed"].strip() == "bert.pooler.dense.bias"
        with pytest.raises(ValueError, match="the checkpoint lacks"):
            models.BERTForMaskedLM.from_pretrained(tmp_path)

    def test_a_wrong_shape(self, run, folder, tmp_path):
        models.BERTForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"][:-1].copy()
        save_file(tensors, tmp_path / "model.safetensors")
        result = run("info", tmp_path)
        assert result.exit_code == 1 and "no: model.safetensors: tensor cls.predictions.bias has shape (17,)" in result.stdout

    def test_without_a_tokenizer(self, run, folder, tmp_path):
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        result = run("info", tmp_path)
        assert result.exit_code == 0 and "none: give ids, not texts" in result.stdout

    def test_reads_no_weights(self, run, folder, monkeypatch):
        monkeypatch.setattr("lucid.models.safetensors_file.SafetensorsFile.read_into", lambda *_: pytest.fail("weights were read"))
        assert run("info", folder).exit_code == 0


class TestEncode:
    def test_table(self, run):
        result = run("encode", "The electron rises.")
        rows = [tuple(cell.strip() for cell in row.strip("│").split("│")) for row in result.stdout.splitlines() if row.startswith("│")]
        assert rows == [
            ("[CLS]", "2", "", ""),
            ("the", "5", "0-3", "The"),
            ("el", "11", "4-6", "el"),
            ("##ec", "12", "6-8", "ec"),
            ("##tron", "13", "8-12", "tron"),
            ("rises", "7", "13-18", "rises"),
            (".", "10", "18-19", "."),
            ("[SEP]", "3", "", ""),
        ]

    def test_json(self, run):
        result = run("encode", "a b", "[MASK]", "--json", "--no-special")
        assert [json.loads(line) for line in result.stdout.splitlines()] == [
            {"text": "a b", "tokens": ["a", "b"], "ids": [14, 15], "offsets": [[0, 1], [2, 3]]},
            {"text": "[MASK]", "tokens": ["[MASK]"], "ids": [4], "offsets": [[0, 6]]},
        ]

    def test_streams(self, run):
        result = run("encode", "-", stdin=b"a b\n\n\xff\nsun")
        assert result.stdout == "1\t[CLS] a b [SEP]\t2 14 15 3\n4\t[CLS] sun [SEP]\t2 6 3\n"
        assert result.exit_code == 1 and "line 3: not UTF-8" in result.stderr
        records = [json.loads(line) for line in run("encode", "-", "--json", stdin=b"a b\n\xff\n").stdout.splitlines()]
        assert records[0] == {"line": 1, "text": "a b", "tokens": ["[CLS]", "a", "b", "[SEP]"], "ids": [2, 14, 15, 3]} | {
            "offsets": [[0, 0], [0, 1], [2, 3], [0, 0]]
        }
        assert records[1]["error"].startswith("not UTF-8")


class TestHelp:
    def test_version(self, run):
        result = run("--version")
        assert result.stdout == f"lucid {lucid.__version__}\n" and result.exit_code == 0

    def test_config(self, run):
        assert run("config").stdout.startswith("lucid ")

    def test_no_arguments_is_help(self, run):
        assert run().stdout == run("--help").stdout == run("-h").stdout

    @pytest.mark.parametrize("command", [[], ["fill-mask"], ["info"], ["encode"], ["config"]])
    def test_has_examples(self, run, command):
        result = run(*command, "--help")
        assert result.exit_code == 0
        if command != ["config"]:
            assert f" lucid {' '.join(command)}" in result.stdout.split("For example:")[1]

    def test_imports_little(self):
        program = (
            "import sys\nfrom lucid.cli import app\n"
            "try:\n    app(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "print(sorted(sys.modules.keys() & {'numpy', 'tokenizers', 'safetensors', 'lucid.models', 'lucid._ext'}), file=sys.stderr)\n"
        )
        for arguments in (["--version"], ["fill-mask", "--help"]):
            done = subprocess.run(
                [sys.executable, "-c", program, *arguments], env=environment(), capture_output=True, text=True, check=True
            )
            assert done.stderr == "[]\n", done.stderr

    def test_completion(self):
        done = start(env=environment(COMP_WORDS="lucid fi", COMP_CWORD="1", _LUCID_COMPLETE="complete_bash"))
        assert done.communicate(timeout=60) == (b"fill-mask\n", b"")


class TestProcess:
    """What only a process of its own can show."""

    def test_a_line_is_answered_before_the_next_comes(self, folder):
        # A shell's background jobs ignore the interrupt, and so would the child of a test run in one.
        process = start("fill-mask", "-", "-m", folder, "-k", 1, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        patience = threading.Timer(60, process.kill)
        patience.start()
        for number in (1, 2):
            process.stdin.write(b"a [MASK]\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{number}\t1\t".encode())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        patience.cancel()
        assert (out, err, process.returncode) == (b"", b"lucid: interrupted\n", 130)

    @pytest.mark.parametrize("arguments", [["-"], ["a [MASK]", "--json"], ["a [MASK]"]])
    def test_a_reader_that_goes_away(self, folder, arguments):
        process = start("fill-mask", *arguments, "-m", folder)
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(b"a [MASK]\n" * 50_000 if arguments == ["-"] else b"", timeout=60)
        assert (err, process.returncode) == (b"", 141)

    def test_a_progress_bar_on_a_terminal(self, folder, tmp_path):
        pty = pytest.importorskip("pty")
        (tmp_path / "lines.txt").write_bytes(b"a [MASK]\nno mask\n" * 100)
        leader, follower = pty.openpty()
        with (tmp_path / "out.jsonl").open("wb") as out:
            process = start("fill-mask", "--file", tmp_path / "lines.txt", "-m", folder, "--json", stdout=out, stderr=follower)
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 1 << 16):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(leader)
        assert process.wait(60) == 1
        process.stdin.close()
        assert b"100%" in shown and b"200 lines" in shown and b"100 of 200 lines could not be answered" in shown
        records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [record["line"] for record in records] == list(range(1, 201))

    def test_an_output_that_is_not_utf8(self, folder):
        for arguments in (["--json"], []):
            process = start("fill-mask", "中\U0001f600 [MASK]", *arguments, "-m", folder, env=environment(PYTHONIOENCODING="latin-1"))
            out, err = process.communicate(timeout=60)
            assert (err, process.returncode) == (b"", 0)
            if arguments:
                assert json.loads(out.decode("latin-1"))["text"] == "中\U0001f600 [MASK]"
