"""What surrounds the source: workflows, issue forms, hooks and the citation agree with the Makefile and
pyproject.toml."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsify_cli.app import exit_code

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an unpacked source distribution has no workflows")


def read(file: str | Path) -> Any:
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for workflow in WORKFLOWS:
        for name, job in read(workflow)["jobs"].items():
            yield f"{workflow.stem}.{name}", job


def commands() -> list[tuple[str, str]]:
    """(job, command) of every `run:` step."""
    return [(name, step["run"]) for name, job in jobs() for step in job.get("steps", ()) if "run" in step]


def makes(command: str) -> list[str]:
    """Targets of a command that calls make."""
    words = shlex.split(command)
    return [word for word in words[1:] if "=" not in word] if words[0] == "make" else []


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


def needed_by(target: str) -> set[str]:
    """Targets that `make` needs for a target, itself included."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (needed,) = re.findall(rf"^{target}:(.*)", text, re.MULTILINE)
    below = [needed_by(name) for name in needed.split() if name in targets()]
    return {target}.union(*below)


def test_all_files_that_a_service_reads_are_yaml() -> None:
    hidden = [".github/dependabot.yml", ".pre-commit-config.yaml", ".pre-commit-hooks.yaml", "CITATION.cff"]
    for file in [*WORKFLOWS, *FORMS, *hidden]:
        assert read(file), file


# workflows


def test_workflows_call_make_targets_that_exist() -> None:
    called = {target for _, command in commands() for target in makes(command)}
    assert called == {"lint", "types", "floors", "unit", "docs", "package"}
    assert called - targets() == set()


def test_the_workflow_runs_all_that_make_test_runs() -> None:
    of_tests = [command for name, command in commands() if name.startswith("tests.")]
    called = {target for command in of_tests for target in makes(command)}
    assert needed_by("test") - {"test"} <= called
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "make test"


def test_the_tests_run_on_every_python_that_the_package_is_declared_for() -> None:
    prefix = "Programming Language :: Python :: "
    declared = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    matrix = read(".github/workflows/tests.yml")["jobs"]["unit"]["strategy"]["matrix"]["python"]
    assert matrix == declared == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={declared[0]}"


def test_jobs_get_no_more_rights_than_they_need() -> None:
    for workflow in WORKFLOWS:
        assert read(workflow)["permissions"] == {"contents": "read"}, workflow
    more = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    assert more == {"release.publish": {"id-token": "write"}}


def test_a_release_is_tested_and_built_before_it_is_published_without_a_password() -> None:
    release = read(".github/workflows/release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}, "YAML 1.1 reads the key `on` as true"
    order = {name: job.get("needs") for name, job in release["jobs"].items()}
    assert order == {"tests": None, "build": "tests", "publish": "build"}
    assert release["jobs"]["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert "workflow_call" in read(".github/workflows/tests.yml")[True]
    publish = release["jobs"]["publish"]["steps"][-1]
    assert publish == {"uses": "pypa/gh-action-pypi-publish@release/v1"}


@pytest.mark.parametrize(("tag", "code"), [(PROJECT["version"], 0), ("99.0.0", 2)])
def test_a_tag_that_is_not_the_version_stops_the_release(tmp_path: Path, tag: str, code: int) -> None:
    (check,) = [command for _, command in commands() if "GITHUB_REF_NAME" in command]
    (tmp_path / "dist").mkdir()
    for name in (f"{PROJECT['version']}.tar.gz", f"{PROJECT['version']}-py3-none-any.whl"):
        (tmp_path / "dist" / f"sparsify_recipes-{name}").touch()
    environment = {"GITHUB_REF_NAME": f"v{tag}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-ec", check], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == code


# issue forms


@pytest.mark.parametrize("name", ["bug", "model", "question"])
def test_an_issue_form_is_one_that_github_takes(name: str) -> None:
    read_form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert set(read_form) == {"name", "description", "labels", "body"}
    fields = read_form["body"]
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers)
    assert {field["type"] for field in fields} <= {"textarea", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_forms_are_for_bugs_models_and_questions() -> None:
    assert [form.stem for form in FORMS] == ["bug", "config", "model", "question"]
    assert (ROOT / ".github/pull_request_template.md").read_text(encoding="utf-8").count("- [ ]") == 4


# hooks


def test_the_hook_for_other_repositories_validates_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = read(".pre-commit-hooks.yaml")
    script, *arguments = shlex.split(hook["entry"])
    assert script in PROJECT["scripts"] and hook["types"] == ["yaml"]
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    right = "version: 1\ntitle: Right\nrules:\n  - {layers: conv1, group: filter, sparsity: 50%}\n"
    (recipes / "right.yaml").write_text(right, encoding="utf-8")
    (recipes / "wrong.yaml").write_text("version: 1\nrules: []\nlayer: x\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = [str(file.relative_to(tmp_path)) for file in sorted(recipes.iterdir())]
    assert all(re.search(hook["files"], file) for file in files)
    assert not re.search(hook["files"], ".github/workflows/tests.yml")
    assert exit_code([*arguments, files[0]]) == 0
    assert exit_code([*arguments, *files]) == 1
    out, err = capsys.readouterr()
    assert "recipes/right.yaml: valid\n" in out
    assert "recipes/wrong.yaml:3:1: layer: unknown key" in err


def test_the_hooks_of_this_repository_run_its_own_tools(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("x = 1\n", encoding="utf-8")
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert [hook["id"] for hook in local["hooks"]] == ["ruff-check", "ruff-format", "mypy"]
    for hook in local["hooks"]:
        tool, *arguments = shlex.split(hook["entry"])
        folder, name = tool.rsplit("/", 1)
        assert (folder, hook["language"]) == (".venv/bin", "system")
        files = [] if hook.get("pass_filenames") is False else [str(source)]
        ready = ["--version"] if name == "mypy" else files
        command = [sys.executable, "-m", name, *arguments, *ready]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_make_lint_also_checks_the_format() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert lint == "\t$(BIN)/ruff check .\n\t$(BIN)/ruff format --check .\n"


# papers


def test_the_citation_names_this_version() -> None:
    citation = read("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["cff-version"] == "1.2.0" and citation["authors"]


@pytest.mark.parametrize("page", ["SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|docs|sparsify|schemas|cli)/[\w./]*\.\w+)`|\]\(([\w./]+)\)", text)
    files = [quoted or linked for quoted, linked in named]
    assert [file for file in files if not (ROOT / file).exists()] == []
