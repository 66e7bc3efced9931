"""The built wheel, installed elsewhere, is the whole program."""
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group('wheel') # one build


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    def sh(*a): subprocess.run([sys.executable, '-m', *a], check=True, cwd=d, capture_output=True, text=True)
    sh('build', '--wheel', '--outdir', str(d), str(ROOT))
    wheel, = d.glob('*.whl')
    sh('pip', 'install', '--no-deps', '--target', str(d/'site'), str(wheel))
    return d/'site'

def run(site, code, cwd):
    env = dict(os.environ, PYTHONPATH=str(site), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True, text=True)

def test_every_module(elsewhere, tmp_path):
    fs = [p.relative_to(ROOT/'ldm_nb').with_suffix('') for p in (ROOT/'ldm_nb').rglob('*.py') if p.stem != '__init__']
    modules = sorted('.'.join(f.parts) for f in fs)
    assert {'core.seeds', 'methods.ldm', 'lab.cli', '__main__'} <= set(modules)
    r = run(elsewhere, f'import importlib, ldm_nb\nfor m in {modules}: importlib.import_module("ldm_nb." + m)\nprint(ldm_nb.__file__)', tmp_path)
    assert r.returncode == 0, r.stderr
    assert Path(r.stdout.strip()).parent == elsewhere/'ldm_nb'

def test_train(elsewhere, tmp_path):
    argv = ['train', 'gridworld', '--preset', 'quick', '--frames', '2000', '--seeds', '0']
    r = run(elsewhere, f'from ldm_nb.lab.cli import main; main({argv})', tmp_path)
    assert r.returncode == 0, r.stderr
    assert (tmp_path/'runs/gridworld-ldm/imagined.png').exists()

def test_list(elsewhere, tmp_path):
    "The catalogue is in the wheel"
    r = run(elsewhere, 'from ldm_nb.__main__ import main; main(["list"])', tmp_path)
    assert r.returncode == 0 and '--kl-weight' in r.stdout, r.stderr

def test_trained_networks(elsewhere, tmp_path):
    "Networks come with the wheel and are used by name"
    r = run(elsewhere, 'from ldm_nb import load; w, a = load("gridworld-ldm-one-goal", 1); print(w.steps)', tmp_path)
    assert r.returncode == 0 and r.stdout.strip() == '120', r.stderr
    r = run(elsewhere, 'from ldm_nb import theatre; theatre("gridworld-rl2-full").save("t.html")', tmp_path)
    assert r.returncode == 0 and 'function play' in (tmp_path/'t.html').read_text(encoding='utf-8'), r.stderr
    r = run(elsewhere, 'from ldm_nb.__main__ import main; main(["render", "gridworld-rl2-full", "--task", "3,4"])', tmp_path)
    assert r.returncode == 0 and (tmp_path/'gridworld-rl2-full.gif').exists(), r.stderr
    assert sum(f.stat().st_size for f in (elsewhere/'ldm_nb/weights').iterdir()) < 20e6
