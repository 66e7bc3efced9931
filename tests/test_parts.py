"""The package is made of parts, and what is said of it is said of all of them."""
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

import ldm_nb

PACKAGE = Path(ldm_nb.__file__).parent
ENV = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}  # a hook of git sets some, which name another repository

def git(repo, *words):
    me = '-c', 'user.name=me', '-c', 'user.email=me@example.com', '-c', 'commit.gpgsign=false'
    return subprocess.run(['git', *me, *words], cwd=repo, env=ENV, check=True, capture_output=True, text=True).stdout.strip()

def said(repo):
    "What `commit` of the copy in `repo` says, in a process of its own"
    env = ENV | dict(PYTHONPATH=str(repo), PYTHONDONTWRITEBYTECODE='1', GIT_CEILING_DIRECTORIES=str(repo.parent))
    code = 'import ldm_nb.lab.origin as o; print(o.__file__); print(o.commit())'
    done = subprocess.run([sys.executable, '-c', code], cwd=repo, env=env, capture_output=True, text=True, check=True)
    file, commit = done.stdout.splitlines()
    assert Path(file).is_relative_to(repo)
    return commit

@pytest.fixture
def copy(tmp_path):
    "A folder with a copy of the package, which no repository holds"
    shutil.copytree(PACKAGE, tmp_path/'repo'/'ldm_nb', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path/'repo'

@pytest.fixture
def repo(copy):
    "The same folder as a repository with one commit"
    git(copy, 'init', '-q'); git(copy, 'add', '.'); git(copy, 'commit', '-qm', 'first')
    return copy

def test_commit(repo):
    "A file beside the package is none of its own"
    (repo/'notes.txt').write_text('')
    assert said(repo) == git(repo, 'rev-parse', 'HEAD')

@pytest.mark.parametrize('name', ['core/seeds.py', '__init__.py'])
def test_an_edit_in_any_part(name, repo):
    path = repo/'ldm_nb'/name
    path.write_text(path.read_text() + '\n# edited\n')
    assert said(repo) == git(repo, 'rev-parse', 'HEAD') + '+'

def test_a_new_file_in_another_part(repo):
    git(repo, 'config', 'status.showUntrackedFiles', 'no')
    (repo/'ldm_nb'/'worlds'/'mine.py').write_text('')
    assert said(repo) == git(repo, 'rev-parse', 'HEAD') + '+'

def test_outside_of_a_repository(copy):
    assert said(copy) == 'None'

def test_a_copy_in_another_repository(copy):
    "Its commit is that of another source"
    git(copy, 'init', '-q')
    (copy/'theirs.txt').write_text('')
    git(copy, 'add', 'theirs.txt'); git(copy, 'commit', '-qm', 'first')
    assert said(copy) == 'None'

def test_the_story_loads_no_laboratory():
    "What is true of the texts of pages is true of a process: every module of the story, and no module of `lab`"
    code = ("import importlib, pkgutil, sys, ldm_nb\n"
            "story = [m.name for m in pkgutil.walk_packages(ldm_nb.__path__, 'ldm_nb.') if m.name.split('.')[1] not in ('lab', '__main__', '_modidx')]\n"
            "for m in story: importlib.import_module(m)\n"
            "print(len(story), [m for m in sys.modules if m.startswith('ldm_nb.lab.')])")
    number, found = subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    assert int(number) > 40 and found.strip() == '[]'
