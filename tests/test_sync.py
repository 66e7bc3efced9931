"The package is what the pages export, the pages are clean, README.md is made from the index, the settings files agree."
import filecmp, re, shutil, subprocess, sys, tomllib

import pytest
import build, readme
from build import CFG, ROOT

pytestmark = pytest.mark.xdist_group('sync')
ANEW = '''
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml
nbdev_clean(); nbdev_export(); refresh_quarto_yml()
'''


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the repository, cleaned and exported anew"
    d = tmp_path_factory.mktemp('repo')
    for f in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/f, d)
    shutil.copytree(ROOT/'nbs', d/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_site'))
    subprocess.run([sys.executable, '-c', ANEW], cwd=d, check=True)
    return d

def differing(a, b, pat):
    "Files that are not the same in both folders"
    fs = {p.relative_to(r) for r in (a, b) for p in r.rglob(pat) if '.ipynb_checkpoints' not in p.parts}
    def same(f): return (a/f).exists() and (b/f).exists() and filecmp.cmp(a/f, b/f, shallow=False)
    return sorted(str(f) for f in fs if not same(f))


def test_exported(fresh): assert not differing(ROOT/CFG['lib_path'], fresh/CFG['lib_path'], '*.py'), 'run nbdev_export'
def test_clean(fresh): assert not differing(ROOT/'nbs', fresh/'nbs', '*.ipynb'), 'run nbdev_clean'
def test_quarto(fresh): assert not differing(ROOT/'nbs', fresh/'nbs', 'nbdev.yml'), 'copy what refresh_quarto_yml wrote'

def test_readme():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == readme.readme(), 'run nbs/_site/readme.py'

def test_readme_links():
    "What README.md points to in the repository is there"
    md = (ROOT/'README.md').read_text(encoding='utf-8')
    gone = [u for u in build.relative(md) if not (ROOT/u.split('#')[0]).exists()]
    assert not gone

def test_ci_line():
    "What .ci/run takes out of README.md: the second sh block is the test line"
    blocks = re.findall(r'^```sh\n(.*?)^```$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    assert len(blocks) > 1 and blocks[1].count('\n') == 1 and blocks[1].rstrip().endswith('-m pytest')

def test_settings():
    p = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    assert p['project']['name'] == CFG['lib_name'] and p['project']['requires-python'] == '>='+CFG['min_python']
    assert p['tool']['nbdev']['tst_flags'] == CFG['tst_flags'] and p['tool']['nbdev']['strip_libs'] == CFG['lib_path']
    assert 'mujoco>=4.0.0' in CFG['requirements'].split() # robots run after the README's own install line
    init = (ROOT/CFG['lib_path']/'__init__.py').read_text(encoding='utf-8')
    assert f'__version__ = "{CFG["version"]}"' in init

def test_citation():
    "CITATION.cff names the version and the repository of settings.ini; README.md has the version too"
    cff = (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f"version: {CFG['version']}\n" in cff and CFG['git_url'] in cff
    for url in (CFG['git_url'], f"{CFG['doc_host']}{CFG['doc_baseurl']}/theatre.html"):
        assert url in (ROOT/'README.md').read_text(encoding='utf-8') # one place to change them: settings.ini names user and repository
    assert f"version = {{{CFG['version']}}}" in (ROOT/'README.md').read_text(encoding='utf-8')

def test_data_in_front():
    "Pictures of the front page are small"
    assert sum(f.stat().st_size for f in (ROOT/'nbs/images').iterdir()) < 300_000

def test_groups(request):
    "Tests of a page stay in one process: with pytest 9.2 pytest-xdist 3.8 loses the groups, and every page runs twice"
    if hasattr(request.config, 'workerinput'): assert request.node.nodeid.endswith('@sync')
