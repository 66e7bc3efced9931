"""The recipes work outside of the repository: their files are taken from the pages, and run as a stranger would run them."""
import json, os, re, subprocess, sys, time
from pathlib import Path

import pytest
from ldm_nb.evaluation.records import read_records

ROOT = Path(__file__).parents[1]
ENV = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(OMP_NUM_THREADS='1', COLUMNS='120', MPLBACKEND='agg')
def installed():
    "Is the package found without help, outside of the repository?"
    return subprocess.run([sys.executable, '-c', 'import ldm_nb, sys; sys.exit(not ldm_nb.__file__.startswith(sys.argv[1]))', str(ROOT)], cwd='/', env=ENV, capture_output=True).returncode == 0
if not installed(): ENV['PYTHONPATH'] = str(ROOT)

def files(page):
    "The files that a page tells its reader to write: name -> text"
    cells = json.loads((ROOT/'nbs/recipes'/page).read_text(encoding='utf-8'))['cells']
    words = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return dict(re.findall(r'^```python\n# (\w+\.py)\n(.*?)^```', words, re.M | re.S))

FILES = files('970_world.ipynb') | files('980_method.ipynb')
WORLDS = {'my_worlds:Maze': 60, 'my_points:Point': 40, 'my_traps:Traps': 30}  # -> steps of a task
METHODS = 'rl2', 'varibad', 'ldm', 'mixreg'

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "The stranger's folder"
    folder = tmp_path_factory.mktemp('stranger')
    assert not folder.is_relative_to(ROOT)
    for name, text in FILES.items(): (folder/name).write_text(text, encoding='utf-8')
    return folder

def python(folder, *argv, status=0):
    r = subprocess.run([sys.executable, *map(str, argv)], cwd=folder, env=ENV, capture_output=True, encoding='utf-8')
    assert r.returncode == status and 'Traceback' not in r.stderr, r.stdout + r.stderr
    return ' '.join((r.stdout + r.stderr).replace('│', ' ').split())

def ldm(folder, *argv, **kw): return python(folder, '-m', 'ldm_nb', *argv, **kw)

SMALL = ['--preset', 'quick', '--seeds', '3,7', '--episodes', '2', '--workers', '4', '--vae-batch', '4', '--mixture-workers', '1']

@pytest.fixture(scope='module')
def run(here):
    "A run of the maze that was stopped halfway and went on"
    ldm(here, 'train', 'my_worlds:Maze', '--method', 'ldm', *SMALL, '--frames', '1600')
    out = here/'runs'/'my_worlds.Maze-ldm'
    assert '| ldm | test | 9 |' in ldm(here, 'resume', out, '--frames', '3200')
    return out

def test_their_length():
    "The numbers that the pages promise; empty lines are not counted"
    assert set(FILES) == {'my_worlds.py', 'my_points.py', 'my_traps.py', 'my_methods.py'}
    lines = {k: len([l for l in text.splitlines() if l.strip()]) for k, text in FILES.items()}
    assert max(lines[f'my_{k}.py'] for k in ('worlds', 'points', 'traps')) <= 20 and lines['my_methods.py'] <= 50, lines
    assert all(len(l) <= 120 for text in FILES.values() for l in text.splitlines())

@pytest.mark.slow
def test_resumed(here, run):
    "The networks of a run that went on, and all curves of one that was stopped, are those of a run in one go, byte for byte"
    argv = ['train', 'my_worlds:Maze', '--method', 'ldm', *SMALL, '--frames', '3200', '--checkpoint-every', '2', '--out']
    ldm(here, *argv, 'whole')
    p = subprocess.Popen([sys.executable, '-m', 'ldm_nb', *argv, 'stopped'], cwd=here, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not list(here.glob('stopped/checkpoint-*')): time.sleep(.02)
    p.terminate()
    assert p.wait() == 143 and not (here/'stopped'/'weights.safetensors').exists()
    ldm(here, 'resume', 'stopped')
    whole = {k: (here/'whole'/k).read_bytes() for k in ('metrics.jsonl', 'weights.safetensors')}
    assert {k: (here/'stopped'/k).read_bytes() for k in whole} == whole and (run/'weights.safetensors').read_bytes() == whole['weights.safetensors']

def test_evaluated_and_recorded(here, run):
    "An option of the maker is in the settings, in the table and in the record"
    assert json.loads((run/'config.json').read_text(encoding='utf-8'))['config']['episodes'] == 2
    text = ldm(here, 'evaluate', run)
    assert 'return, episode 2' in text and 'goals reached' in text and text.count('of 2 |') == 20  # a line for each goal
    assert 'curves/my_worlds.Maze-ldm.jsonl.gz' in ldm(here, 'record', run, '--data', 'curves')
    rows = read_records(here/'curves'/'my_worlds.Maze-ldm.jsonl.gz')
    assert [(r['seed'], r['world'], r['config']['episodes']) for r in rows] == [(3, 'my_worlds:Maze', 2), (7, 'my_worlds:Maze', 2)]
    assert 'episodes of a task' in ldm(here, 'list', 'my_worlds:Maze')

def test_pictures(here, run):
    "Curves, paths and imagined tasks; the walls are dark: nine of 28 cells, on each of the six maps"
    from PIL import Image
    assert 'path.png' in ldm(here, 'plot', run)
    assert {p.name for p in run.glob('*.png')} == {'curves.png', 'path.png', 'imagined.png'}
    with Image.open(run/'path.png') as f: colours = f.convert('RGB').getcolors(10**6)
    grey = sum(n for n, (r, g, b) in colours if r == g == b and 80 < r < 130)
    cell = 33*33  # pixels
    walls = sum(row[1:-1].count('#') for row in re.search(r'PLAN = (.*)', FILES['my_worlds.py'])[1].split("', '")[1:-1])
    assert .7 < grey/(6*walls*cell) < 1.3, grey/(6*cell)

@pytest.mark.slow
def test_every_method_in_every_world(here):
    "A few iterations each, in one process"
    code = f'''
import ldm_nb
for world, steps in {WORLDS}.items():
    ldm_nb.check_world(ldm_nb.make_world(world))
    for method in {METHODS + ('my_methods:COUNT',)}:
        small = dict(workers=4)
        if method in ('ldm', 'varibad'): small |= dict(vae_batch=4)
        if world == 'my_points:Point': small |= dict(chunk=40)
        folder = ldm_nb.train(world, method, preset='quick', seeds='3,7', frames=12*steps, out=f'all/{{world}}-{{method}}'.replace(':', '.'), **small)
        found = ldm_nb.evaluate(folder)
        assert found.returns.isfinite().all() and len(found.returns) == 2, (world, method)
        assert ldm_nb.load(folder, seed=7)[0].steps == steps
'''
    assert python(here, '-c', code) == ''

def test_deaths(here):
    "Tasks differ in length: in both worlds some random agents die, and others do not"
    code = '''
import torch, ldm_nb
from my_points import Point
from my_traps import Traps
for world in (Point(), Traps()):
    g, shape = torch.Generator().manual_seed(0), (1, 64)
    goal = world.family.splits['train'].sample(torch.rand(*shape, 1, generator=g))
    state, dead = world.start(goal, None), torch.zeros(shape, dtype=torch.bool)
    for _ in range(world.horizon):
        action = torch.randint(world.n_actions, shape, generator=g) if world.n_actions else torch.randn(*shape, 2, generator=g)
        state, reward, died = world.step(state, goal, action)
        dead |= died
    print(world.deaths, 0 < dead.sum().item() < 64)
'''
    assert python(here, '-c', code) == 'True True True True'

def test_a_bonus_of_zero_is_rl2(here, tmp_path):
    "With a bonus of 0 the same curves as RL2, to the last digit; with more, others"
    code = '''
import sys, ldm_nb
for name, method, more in ('rl2', 'rl2', {}), ('none', 'my_methods:COUNT', dict(bonus=0.)), ('bonus', 'my_methods:COUNT', dict(bonus=.3)):
    ldm_nb.train('my_worlds:Maze', method, out=sys.argv[1] + '/' + name, seeds='3,7', frames=1000, workers=4, **more)
'''
    assert python(here, '-c', code, tmp_path) == ''
    def curves(name):
        rows = [json.loads(l) for l in (tmp_path/name/'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
        return [r | dict(metrics={k: v for k, v in r['metrics'].items() if k != 'cells'}) for r in rows]
    assert curves('none') == curves('rl2') != curves('bonus')

def test_other_folders(run, tmp_path):
    "Where the modules are not: one line that says what to do"
    for argv in (['train', 'my_worlds:Maze'], ['evaluate', run], ['train', 'gridworld', '--method', 'my_methods:COUNT']):
        text, name = ldm(tmp_path, *argv, status=2), 'my_methods' if 'gridworld' in argv else 'my_worlds'
        assert f'there is no module {name} here: run this in the folder where {name}.py lies, or add that folder to PYTHONPATH' in text and len(text) < 400, text
    assert not list(tmp_path.iterdir())

def test_a_mistake_is_said_before_training(tmp_path):
    "No traceback, although it comes up in the stranger's function"
    wrong = FILES['my_points.py'].replace('0*goal if u is None else ', '')
    assert wrong != FILES['my_points.py']
    (tmp_path/'my_points.py').write_text(wrong, encoding='utf-8')
    text = ldm(tmp_path, 'train', 'my_points:Point', status=2)
    assert 'point, one step: 1 thing to mend' in text and 'start without noise (u is None) was called with' in text and not (tmp_path/'runs').exists()
