"""The commands that need no torch: quick, exact about exit codes, results on stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify.errors import DataError, VerificationError
from sparsify.recipe import load
from sparsify_cli import app, topics
from sparsify_cli.app import COMMANDS, exit_code
from sparsify_schemas import units
from sparsify_schemas.recipe import Recipe

RECIPE = "version: 1\ntitle: Sample\nrules:\n  - {layers: conv1, group: filter, sparsity: 50%}\n"
LANGUAGE = {
    "init": ["x.yaml"],
    "recipes": [],
    "validate": ["recipe.yaml"],
    "explain": ["group_lasso"],
    "schema": ["recipe"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from sparsify_cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("rules", "budget"),
    [
        ("[{layers: a, group: filter, sparsity: 50%}]", "none: the rules say how much is removed"),
        (
            "[{layers: a, group: '2:4'}, {layers: b, protect: true}]",
            "none: the rules say how much is removed",
        ),
        ("[{layers: a, group: filter}]", "none: only groups that are zero are removed"),
        (
            "[{layers: a, group: filter}, {layers: b, group: filter, sparsity: 50%}]",
            "none: only groups that are zero are removed by rules without 'sparsity'",
        ),
    ],
)
def test_a_recipe_without_a_budget_says_what_is_removed(rules: str, budget: str) -> None:
    Path("recipe.yaml").write_text(f"version: 1\ntitle: Sample\nrules: {rules}\n", encoding="utf-8")
    assert f"  budget   {budget}\n" in run("validate", "recipe.yaml").stdout


QUICK = pytest.mark.parametrize(
    "arguments",
    [*([name, *rest] for name, rest in LANGUAGE.items()), ["--help"], ["validate", "--help"]],
    ids=" ".join,
)


class TestStart:
    @QUICK
    def test_few_modules_are_imported(self, arguments: list[str]) -> None:
        """Nearly all of the time that a command takes to start goes into imports; 330 modules are a fifth of
        a second."""
        Path("x.yaml").unlink(missing_ok=True)
        code = (
            "import sys\n"
            "from sparsify_cli.app import exit_code\n"
            "code = exit_code()\n"
            "print(len(sys.modules), file=sys.stderr)\n"
            "sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert int(done.stderr.splitlines()[-1]) < 400

    @pytest.mark.nightly
    @QUICK
    def test_under_half_a_second(self, arguments: list[str]) -> None:
        # Processor time: on an idle machine it is the waiting time, on a busy one it does not lie.
        best = 9.0
        for _ in range(5):
            Path("x.yaml").unlink(missing_ok=True)
            before = os.times()
            assert run(*arguments).returncode == 0
            after = os.times()
            best = min(
                best,
                after.children_user - before.children_user + after.children_system - before.children_system,
            )
        assert best < 0.5

    @pytest.mark.parametrize("name", [*LANGUAGE, "diff"])
    def test_without_torch(self, name: str) -> None:
        rest = LANGUAGE.get(name, ["recipe.yaml", "recipe.yaml"])
        code = (
            "import sys\n"
            "from sparsify_cli.app import exit_code\n"
            "code = exit_code()\n"
            "print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules], file=sys.stderr)\n"
            "sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name, *rest], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")

    def test_help_imports_no_command(self) -> None:
        code = (
            "import sys\n"
            "from sparsify_cli.app import exit_code\n"
            "exit_code(['--help'])\n"
            "from sparsify_cli.app import COMMANDS\n"
            "print([module for module, _ in COMMANDS.values() if module in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        assert all(f"  {name}" in done.stdout for name in COMMANDS)


class TestBoundary:
    """What a command raises, what the user sees."""

    def failing(
        self, monkeypatch: pytest.MonkeyPatch, error: BaseException, *, file: str = app.__file__
    ) -> int:
        """The exit code where an error is raised in the first line of a file, by default one of ours."""
        module = type(sys)("failing")
        module.error = error  # type: ignore[attr-defined]
        exec(compile("def command() -> None: raise error", file, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, "failing", module)
        monkeypatch.setitem(app.COMMANDS, "failing", ("failing", "Fails."))
        return exit_code(["failing"])

    def test_what_the_user_can_mend(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.failing(monkeypatch, DataError("no such data")) == 1
        assert capsys.readouterr() == ("", "no such data\n")

    def test_failed_verification(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.failing(monkeypatch, VerificationError("differs")) == 3

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.failing(monkeypatch, KeyboardInterrupt()) == 130

    def test_a_bug(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.failing(monkeypatch, ZeroDivisionError("oops")) == 1
        error = capsys.readouterr().err
        assert error.startswith("sparsify: ZeroDivisionError: oops; this is a bug\n")
        assert "Traceback" not in error

    def test_an_error_of_code_that_is_not_ours_is_no_bug(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.failing(monkeypatch, ZeroDivisionError("oops"), file="/home/me/nets.py") == 1
        assert capsys.readouterr() == (
            "",
            "/home/me/nets.py:1: command failed: ZeroDivisionError: oops\n"
            "run it again with SPARSIFY_DEBUG=1 to see what called it\n",
        )

    def test_an_exit_of_code_that_is_not_ours_is_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.failing(monkeypatch, SystemExit(0), file="/home/me/nets.py") == 1
        assert capsys.readouterr() == ("", "/home/me/nets.py:1: command failed: it called sys.exit(0)\n")

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (MemoryError("Unable to allocate 9 TiB"), "Unable to allocate 9 TiB"),
            (
                RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 B"),
                "DefaultCPUAllocator: can't allocate memory: 8 B",
            ),
        ],
    )
    def test_memory_that_is_used_up_is_no_bug(
        self,
        error: Exception,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.failing(monkeypatch, error) == 1
        said = f"there is not enough memory ({message}); use a smaller batch or model\n"
        assert capsys.readouterr().err == said

    def test_a_bug_with_its_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SPARSIFY_DEBUG", "1")
        assert self.failing(monkeypatch, ZeroDivisionError("oops")) == 1
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Usage"),
            (["vaildate"], "no command 'vaildate'; did you mean 'validate'?"),
            (["frobnicate"], "known: init, recipes, validate,"),
            (["--frobnicate"], "No such option"),
            (["validate"], "Missing argument"),
            (["validate", "recipe.yaml", "--fix"], "No such option"),
            (["schema", "recipes"], "no schema of 'recipes'; known: recipe, cuts, report"),
        ],
    )
    def test_usage(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(arguments) == 2
        said = capsys.readouterr()
        assert message in said.out + said.err

    def test_a_closed_pipe_is_no_drama(self) -> None:
        done = subprocess.run(
            f'"{sys.executable}" -c "from sparsify_cli.app import main; main()" schema recipe | head -n 1',
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("{\n", "")

    def test_names_that_are_not_utf_8(self) -> None:
        done = subprocess.run(
            [
                sys.executable.encode(),
                b"-c",
                b"from sparsify_cli.app import main; main()",
                b"validate",
                b"\xff.yaml",
            ],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, b"\\udcff.yaml: no such file")

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["--version"]) == 0
        assert capsys.readouterr().out.startswith("sparsify 0.")


class TestValidate:
    def test_a_valid_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["validate", "recipe.yaml"]) == 0
        out, error = capsys.readouterr()
        assert out.splitlines()[0] == "recipe.yaml: valid"
        assert "  rule 0   conv1: filter, 50% removed, pruned by magnitude" in out
        assert error == ""

    def test_a_target_that_computes_in_integers_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert (
            exit_code(["validate", "recipe.yaml", "--set", "targets={a: onnxruntime, b: onnxruntime-int8}"])
            == 0
        )
        shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "target" in line]
        assert shown == [
            "target   a: cpu, onnxruntime, batch 1",
            "target   b: cpu, onnxruntime, batch 1, int8",
        ]

    def test_an_invalid_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("recipe.yaml").write_text(
            RECIPE.replace("filter", "filtre").replace("50%", "50"), encoding="utf-8"
        )
        assert exit_code(["validate", "recipe.yaml"]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert [line.partition(": ")[0] for line in error.splitlines()] == [
            "recipe.yaml:4:28",
            "recipe.yaml:4:46",
        ]

    def test_set(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert (
            exit_code(["validate", "recipe.yaml", "--set", "title=Other", "--set", "seed=3", "--json"]) == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert (found["valid"], found["recipe"]["title"], found["recipe"]["seed"]) == (True, "Other", 3)
        assert exit_code(["validate", "recipe.yaml", "--set", "sed=3"]) == 1
        assert capsys.readouterr().err == "--set: sed: unknown key 'sed'; did you mean 'seed'?\n"

    def test_json_of_problems(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("recipe.yaml").write_text(RECIPE.replace("title", "titel"), encoding="utf-8")
        assert exit_code(["validate", "recipe.yaml", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["problems"] == [
            {
                "file": "recipe.yaml",
                "line": 2,
                "column": 1,
                "path": "titel",
                "message": "unknown key",
                "hint": "did you mean 'title'?",
            }
        ]

    def test_several_recipes_are_each_checked(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("broken.yaml").write_text(RECIPE.replace("title", "titel"), encoding="utf-8")
        Path("other.yaml").write_text(RECIPE, encoding="utf-8")
        assert exit_code(["validate", "recipe.yaml", "broken.yaml", "other.yaml"]) == 1
        out, error = capsys.readouterr()
        assert out == "recipe.yaml: valid\nother.yaml: valid\n"
        assert error == "broken.yaml:2:1: titel: unknown key; did you mean 'title'?\n"
        assert exit_code(["validate", "recipe.yaml", "broken.yaml", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert [(one["file"], one["valid"], one["recipe"] is None) for one in found] == [
            ("recipe.yaml", True, False),
            ("broken.yaml", False, True),
        ]


class TestInit:
    def test_the_sample_is_valid_and_says_what_to_do_next(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["init", "new.yaml"]) == 0
        out, error = capsys.readouterr()
        assert out == "new.yaml\n"
        assert "sparsify validate new.yaml" in error
        first, second, *_ = Path("new.yaml").read_text(encoding="utf-8").splitlines()
        assert first == "# yaml-language-server: $schema=recipe.schema.json"
        assert "sparsify schema recipe > recipe.schema.json" in second
        recipe = load("new.yaml").recipe
        assert [stage.kind for stage in recipe.stages] == ["train", "cut", "train"]
        assert str(recipe.budget.macs) == "40%"

    def test_nothing_is_overwritten(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["init"]) == 1
        assert (
            capsys.readouterr().err == "recipe.yaml: exists already; name another file, or remove it first\n"
        )
        assert Path("recipe.yaml").read_text(encoding="utf-8") == RECIPE

    def test_a_folder_that_is_missing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["init", "nowhere/x.yaml"]) == 1
        assert capsys.readouterr().err == "cannot write nowhere/x.yaml: there is no folder nowhere\n"


class TestExplain:
    @pytest.mark.parametrize(
        ("word", "name"),
        [
            ("group_lasso", "penalty.group_lasso"),
            ("penalty.group_lasso", "penalty.group_lasso"),
            ("rules.0.penalty.group_lasso", "penalty.group_lasso"),
            ("group_lasso.scope", "penalty.group_lasso.scope"),
            ("rules.keep.multiple_of", "rules.keep.multiple_of"),
            ("multiple_of", "rules.keep.multiple_of"),
            ("budget.macs", "budget.macs"),
            ("filter", "group.filter"),
            ("out_channel", "group.filter"),
            ("2:4", "group.n:m"),
            ("n:m", "group.n:m"),
            ("4x1", "group.block"),
            ("taps", "group.tap"),
            ("schedule.cubic", "schedule.cubic"),
            ("stage.train", "stage.train"),
            ("stages.0.train.epochs", "stage.train.epochs"),
            ("stages.train.optimizer.sgd.lr", "optimizer.sgd.lr"),
            ("targets", "targets"),
            ("targets.cpu", "target.cpu"),
            ("rules.0.penalty", "rules.penalty"),
            ("rule", "rules"),
            ("inputs.shape", "inputs.shape"),
            ("units", "units"),
            ("extends", "extends"),
        ],
    )
    def test_words(self, word: str, name: str) -> None:
        assert topics.find_topic(word).name == name

    def test_formula_keys_and_defaults(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "group_lasso"]) == 0
        out = capsys.readouterr().out
        assert "R = sum over groups g of strength * v_g * ||w_g||_2" in out
        assert "proximal | subgradient | half_space; default proximal" in out

    def test_defaults_are_shown_as_a_recipe_has_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "criterion"]) == exit_code(["explain", "rules"]) == 0
        assert "default {kind: magnitude, norm: 2, normalize: none}" in " ".join(
            capsys.readouterr().out.split()
        )

    def test_keys_are_said_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "inputs"]) == 0
        assert capsys.readouterr().out.count("the dimension that counts examples, 0 the first") == 1

    def test_every_suffix_is_defined(self) -> None:
        lines = [
            line.split("  ")[2] for line in (units.__doc__ or "").splitlines() if line.startswith("    ")
        ]
        defined = {suffix for line in lines for suffix in line.split()}
        assert defined == {
            s
            for kind in (units.Share, units.Duration, units.Amount, units.Size, units.Time, units.Points)
            for s in kind.UNITS
        }

    def test_protect_says_what_it_excludes(self) -> None:
        assert "takes no group, penalty, criterion, keep or sparsity" in topics.find_topic("protect").text

    def test_what_a_callable_of_data_returns_is_said(self) -> None:
        assert (
            "(train, test), each a pair (x, y) of arrays or tensors" in topics.find_topic("data.source").text
        )

    def test_every_topic_can_be_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        for name, topic in topics.all_topics().items():
            assert topics.find_topic(name) == topic
            assert topic.text, name
            assert exit_code(["explain", name]) == 0
            assert capsys.readouterr().out.startswith(name)

    def test_the_whole_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "recipe"]) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in Recipe.model_fields), "each key"
        assert "Besides these keys a file may have extends and vars, which are resolved first." in out
        goes_on = out.partition("  baselines  simpler choices ")[2].splitlines()[1]
        assert goes_on.startswith(" " * 13) and goes_on[13] != " ", (
            "what goes on in the next line is indented"
        )

    def test_nothing_is_wider_than_the_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        for name in ("recipe", "group", "data", "keep", "group_lasso"):
            assert exit_code(["explain", name]) == 0
            assert max(map(len, capsys.readouterr().out.splitlines())) <= 80, name
        assert topics.find_topic("recipe.budget.macs") == topics.find_topic("budget.macs")

    def test_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "sensitivity"]) == 1
        assert capsys.readouterr().err == (
            "'sensitivity' has several meanings; name one: penalty.sensitivity, "
            "criterion.sensitivity, command.sensitivity\n"
        )
        assert (
            "ablation: remove 10 % to 90 % of a layer's units"
            in topics.find_topic("command.sensitivity").text
        )
        assert topics.find_topic("report").text.endswith(
            "dense and cut model side by side; or what a study tried and found.\n\n"
            "`sparsify report --help` lists its options."
        )

    def test_unknown_and_ambiguous_words(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "group_laso"]) == 1
        assert capsys.readouterr().err == "there is no topic 'group_laso'; did you mean 'group_lasso'?\n"
        assert exit_code(["explain", "every"]) == 1
        assert "name one: penalty.group_lasso.every" in capsys.readouterr().err
        assert exit_code(["explain", "..."]) == 1

    def test_all_topics(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain"]) == 0
        out = capsys.readouterr().out
        assert "group_lasso" in out
        assert "budget" in out

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["explain", "keep", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [key["name"] for key in found["keys"]] == ["at_least", "multiple_of", "uniform", "limits"]
        assert exit_code(["explain", "--json"]) == 0
        assert "penalty.group_lasso" in json.loads(capsys.readouterr().out)


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("recipe", "cuts", "report"):
        assert exit_code(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == f"sparsify {name}"
