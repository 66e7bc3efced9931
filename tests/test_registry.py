"""Worlds and methods of other people: named by their module, trained, resumed, evaluated, recorded, and what is said when something is wrong."""
import json, os, subprocess, sys
from pathlib import Path

import pytest
from ldm_nb.evaluation.records import read_records
from ldm_nb.lab.config import read_config, write_config

ROOT = Path(__file__).parents[1]
ENV = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', COLUMNS='120')
LDM = [sys.executable, '-m', 'ldm_nb']
SCRIPT = [sys.executable, '-I', '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r}); from ldm_nb.__main__ import main; main()']  # its folder is not on the path, as with `ldm`

WORLDS = '''
"Worlds of somebody else"
from dataclasses import replace
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.worlds.robots import cheetah_velocity
from ldm_nb.worlds.registry import register_world

def Maze(
    rows:int=7, # rows of cells; mine
    slip:float=0, # chance of another action; mine
    episodes:int=2, # N
):
    "A maze that nobody has seen"
    if rows < 2: raise ValueError(f'rows is {rows}, at least 2')
    world = gridworld(episodes=episodes)
    return replace(world, family=replace(world.family, name='maze'))

def Walk(horizon:int=250): # H
    "A walk that takes longer than a chunk"
    world = cheetah_velocity(horizon=horizon)
    return replace(world, family=replace(world.family, name='walk'))

def Needs(size): return gridworld()
def Number(): return 3
def Clash(workers:int=3): return gridworld()
def Taken(seeds:int=3): return gridworld()
SIZE = 7
def Told(rows:int=7): return gridworld() # rows of cells; mine
register_world('maze', Told, 'registered by its module')
'''
METHODS = '''
from dataclasses import dataclass
from ldm_nb.methods import rl2
from ldm_nb.methods.rl2 import RL2

@dataclass(frozen=True)
class Counted(RL2):
    "RL2 with a count bonus"
    bonus:float = .1 # weight of the count bonus; mine

def update(cfg, world, state, traj, noise, iteration):
    state, metrics = rl2.update(cfg, world, state, traj, noise, iteration)
    return state, metrics | dict(bonus=metrics['return']*0 + cfg.bonus)
COUNTED = rl2.METHOD._replace(name='counted', config=Counted, update=update, stages=None)

@dataclass(frozen=True)
class Odd(RL2):
    seeds:int = 3
ODD = rl2.METHOD._replace(name='odd', config=Odd)
'''

@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "A folder outside of the repository with two modules"
    folder = tmp_path_factory.mktemp('stranger')
    (folder/'my_worlds.py').write_text(WORLDS, encoding='utf-8')
    (folder/'my_methods.py').write_text(METHODS, encoding='utf-8')
    (folder/'broken.py').write_text('x = 1\n1/0\n', encoding='utf-8')
    return folder

def ldm(folder, *argv, how=LDM, status=0):
    r = subprocess.run([*how, *map(str, argv)], cwd=folder, env=ENV, capture_output=True, encoding='utf-8')
    assert r.returncode == status and 'Traceback' not in r.stderr, r.stdout + r.stderr
    return ' '.join((r.stdout + r.stderr).replace('│', ' ').split())

SMALL = ['--preset', 'quick', '--seeds', '3,7', '--frames', '2000', '--workers', '4', '--vae-batch', '4', '--mixture-workers', '1']

@pytest.fixture(scope='module')
def run(here):
    ldm(here, 'train', 'my_worlds:Maze', '--method', 'ldm', *SMALL, '--rows', '5', '--slip', '0.5', '--threads', '2')
    return here/'runs'/'my_worlds.Maze-ldm'

@pytest.mark.slow
def test_a_world_from_beginning_to_end(here, run, tmp_path):
    "Trained, resumed, evaluated, plotted, recorded; its options are in config.json and in the record"
    config = read_config(run)
    assert config['world'] == 'my_worlds:Maze' and (config['config']['rows'], config['config']['slip'], config['config']['episodes']) == (5, .5, 2)
    assert type(config['config']['slip']) is float
    assert '| ldm | test | 27 |' in ldm(here, 'resume', run, '--frames', '4000')
    assert '| ldm | test | 27 |' in ldm(here, 'evaluate', run)
    assert 'path.png' in ldm(here, 'plot', run)
    ldm(here, 'check', run)
    ldm(here, 'record', run, '--data', tmp_path/'data')
    rows = read_records(tmp_path/'data'/'my_worlds.Maze-ldm.jsonl.gz')
    assert [r['seed'] for r in rows] == [3, 7] and rows[0]['world'] == 'my_worlds:Maze' and rows[0]['config']['rows'] == 5
    assert 'nothing new' in ldm(here, 'record', run, '--data', tmp_path/'data')

def test_the_script_finds_the_folder(here):
    assert 'rows of cells; mine' in ldm(here, 'list', 'my_worlds:Maze', how=SCRIPT)

def test_a_name_that_the_module_registers(here):
    assert 'registered by its module' in ldm(here, 'list', 'my_worlds:maze', '--method', 'rl2')

@pytest.mark.slow
def test_a_method_from_beginning_to_end(here, tmp_path):
    "Its own setting is an option, in config.json and in the record; a stranger's method on a stranger's world"
    out = tmp_path/'run'
    argv = ['train', 'my_worlds:Maze', '--method', 'my_methods:COUNTED', '--seeds', '3', '--frames', '500', '--workers', '2', '--bonus', '0.3', '--out', out]
    ldm(here, *argv)
    assert read_config(out)['config']['bonus'] == .3
    ldm(here, 'resume', out, '--frames', '1000')
    assert '"bonus": 0.3' in (out/'metrics.jsonl').read_text(encoding='utf-8')
    ldm(here, 'record', out, '--data', tmp_path)
    assert read_records(tmp_path/'my_worlds.Maze-my_methods.COUNTED.jsonl.gz')[0]['config']['bonus'] == .3
    assert ldm(here, 'train', 'gridworld', '--method', 'my_methods:COUNTED', '--bonus', 'nan', status=2) == 'ldm: bonus is nan: allowed is a finite number'

@pytest.mark.slow
def test_list_and_help(here):
    for argv in (['list', 'my_worlds:Maze'], ['list', '--world', 'my_worlds:Maze'], ['train', 'my_worlds:Maze', '--help'], ['train', '--help', 'my_worlds:Maze']):
        text = ldm(here, *argv)
        assert 'rows of cells; mine' in text and 'chance of another action; mine' in text, argv
    text = ldm(here, 'list', 'my_worlds:Maze', '--method', 'my_methods:COUNTED')
    assert 'weight of the count bonus; mine' in text and 'A maze that nobody has seen (train 18, test 27, all 45)' in text and 'RL2 with a count bonus' in text
    assert '--bonus' in ldm(here, 'train', 'gridworld', '--method', 'my_methods:COUNTED', '--help')
    assert ldm(here, 'list', 'ant-goal') == ldm(here, 'list', '--world', 'ant-goal')

@pytest.mark.slow
def test_a_continuous_world_gets_its_form_and_its_chunk(here, tmp_path):
    "The action space decides, never the name; the presets fit the world"
    text = ldm(here, 'list', 'my_worlds:Walk', '--method', 'rl2')
    assert '--chunk 250 ours: so that it fits this world' in text and '--minibatches' in text
    ldm(here, 'train', 'my_worlds:Walk', '--method', 'rl2', '--seeds', '3', '--frames', '500', '--workers', '2', '--out', tmp_path/'run')

BAD = {
    'no module': (['train', 'no_worlds:Maze'], 'there is no module no_worlds here: run this in the folder where no_worlds.py lies, or add that folder to PYTHONPATH'),
    'no name': (['train', 'my_worlds:Mase'], "did you mean 'Maze'?"),
    'no world': (['train', 'my_worlds:SIZE'], 'world is my_worlds:SIZE, but that is not a function that makes a World: it is 7'),
    'another thing': (['train', 'my_worlds:Number'], 'not a function that makes a World: it gave 3'),
    'an argument': (['train', 'my_worlds:Needs'], 'size has no default'),
    'a broken module': (['train', 'broken:Maze'], 'broken cannot be imported: broken.py, line 2: ZeroDivisionError'),
    'its own error': (['train', 'my_worlds:Maze', '--rows', '1'], 'cannot be made with rows 1'),
    'no method': (['train', 'gridworld', '--method', 'my_methods:RL2'], 'that is not a Method'),
    'no method module': (['train', 'gridworld', '--method', 'no_methods:M'], 'there is no module no_methods here'),
    'two meanings': (['train', 'my_worlds:Clash'], 'its option workers is a setting of the method too'),
    'an option of train': (['train', 'my_worlds:Taken'], 'its option seeds is an option of ldm train too'),
    'a setting of train': (['train', 'gridworld', '--method', 'my_methods:ODD'], 'its setting seeds has the name of an option of ldm train'),
    'no episodes': (['train', 'gridworld', '--episodes', '0'], 'episodes is 0: allowed is 1 to 65536'),
    'no word': (['train', 'gridworld', '--episodes', 'many'], 'episodes'),
    "another world's": (['train', 'gridworld', '--contact-forces'], 'contact_forces is an option of ant-dir, ant-goal, not of gridworld'),
    'no preset': (['train', 'my_worlds:Maze', '--preset', 'release'], "no preset is called 'release'"),
    'a colon': (['train', ':Maze'], 'write module:name'),
    'listed': (['list', 'no_worlds:Maze'], 'there is no module no_worlds here'),
    'list': (['list', 'gridwrld'], "did you mean 'gridworld'?"),
}

SOME = [pytest.param(*v, id=k, marks=[pytest.mark.slow]*(i % 3 > 0)) for i, (k, v) in enumerate(BAD.items())]

@pytest.mark.parametrize('argv,says', SOME)
def test_what_is_said(argv, says, here):
    text = ldm(here, *argv, status=2)
    assert says in text and len(text) < 600, text
    assert not (here/'runs'/'gridworld-ldm').exists()

@pytest.mark.slow
def test_a_run_folder_elsewhere(run, tmp_path):
    "The world is not there: one line with what to do, and nothing about versions"
    for command in ('resume', 'evaluate', 'plot', 'record'):
        text = ldm(tmp_path, command, run, status=2)
        assert 'cannot be opened: world is my_worlds:Maze, but there is no module my_worlds here: run this in the folder' in text and 'version' not in text
    r = subprocess.run([*LDM, 'evaluate', str(run)], cwd=tmp_path, env=ENV | dict(PYTHONPATH=f'{ROOT}{os.pathsep}{run.parents[1]}'), capture_output=True)
    assert r.returncode == 0

def test_a_world_that_a_program_registered(here, tmp_path):
    "`register_world`, `train`, `evaluate` and `load` in a program; the same run is refused where nobody has registered the world"
    code = f'''
import ldm_nb, sys
assert 'torch' not in sys.modules
from my_worlds import Maze
ldm_nb.register_world('labyrinth', Maze); ldm_nb.register_world('labyrinth', Maze)
from my_methods import COUNTED
ldm_nb.register_method(COUNTED, 'counts')
folder = ldm_nb.train('labyrinth', 'counted', out={str(tmp_path/'run')!r}, seeds='3,7', frames=500, workers=2, bonus=.2, rows=6)
found = ldm_nb.evaluate(folder)
assert found.returns.shape == (2, 45, 2) and found.table.startswith('| method |')
world, agent = ldm_nb.load(folder, seed=7)
assert (ldm_nb.evaluate((world, agent), 7).returns == found.returns[1:]).all() and world.family.name == 'maze'
import pickle; assert pickle.loads(pickle.dumps(world)).steps == world.steps == 60
for bad, says in ((lambda: ldm_nb.train('labyrinth', bonus='x', method='counted'), "bonus is 'x': allowed is a number"),
                  (lambda: ldm_nb.register_world('labyrinth', lambda: world), 'taken by another world'),
                  (lambda: ldm_nb.train('labyrinth', 'counted', out={str(tmp_path/'run')!r}), 'exists already'),
                  (lambda: ldm_nb.make_world('labyrinth', rows=1), 'cannot be made with rows 1')):
    try: bad()
    except Exception as e: assert says in str(e), e
    else: assert False, says
'''
    r = subprocess.run([sys.executable, '-c', code], cwd=here, env=ENV, capture_output=True, encoding='utf-8')
    assert r.returncode == 0 and not r.stdout and not r.stderr, r.stdout + r.stderr
    text = ldm(here, 'evaluate', tmp_path/'run', status=2)
    assert "world is 'labyrinth': allowed is one of ['gridworld'" in text and 'register' in text and 'version' not in text

@pytest.mark.slow
def test_settings_of_older_runs(tmp_path):
    "Contact forces were a setting of every method for robots; a run that lacks a younger option has its default"
    argv = ['train', 'cheetah-vel', '--method', 'rl2', '--seeds', '3', '--frames', '400', '--workers', '2', '--out', 'run']
    ldm(tmp_path, *argv)
    run = tmp_path/'run'
    config = read_config(run)
    assert 'contact_forces' not in config['config'] and config['config']['horizon'] == 200
    old = {k: v for k, v in config['config'].items() if k not in ('episodes', 'horizon')}
    (run/'weights.safetensors').unlink()
    for p in run.glob('checkpoint-*'): [f.unlink() for f in p.iterdir()], p.rmdir()
    write_config(run, dict(config, config=old | dict(contact_forces=False)))
    assert '| rl2 | test |' in ldm(tmp_path, 'resume', run)
    assert '| rl2 | test |' in ldm(tmp_path, 'evaluate', run)
    write_config(run, dict(config, config=old | dict(contact_forces=True)))
    assert 'contact_forces is True: cheetah-vel neither shows them nor has a price for them' in ldm(tmp_path, 'evaluate', run, status=2)

@pytest.mark.slow
def test_options_of_an_ant_are_recorded(tmp_path):
    text = ldm(tmp_path, 'train', 'ant-goal', '--method', 'rl2', '--help')
    assert '--[no-]contact-forces' in text and '--horizon N' in text
    ldm(tmp_path, 'train', 'ant-goal', '--method', 'rl2', '--contact-forces', '--horizon', '20', '--seeds', '3', '--frames', '400', '--workers', '2', '--chunk', '20', '--minibatches', '1', '--out', 'run')
    stored = read_config(tmp_path/'run')['config']
    assert (stored['contact_forces'], stored['horizon'], stored['chunk']) == (True, 20, 20)
    ldm(tmp_path, 'evaluate', 'run')

@pytest.mark.parametrize('name', sorted(p.name for p in (ROOT/'data'/'weights').glob('*.safetensors')))
def test_kept_networks(name):
    "Every file of data/weights opens, half precision turned to single"
    import torch
    from ldm_nb import load
    world, agent = load(ROOT/'data'/'weights'/name)
    action, _ = agent.act(agent.start(2), torch.zeros(1, 2, world.obs_dim + 1), torch.zeros((1, 2) if world.n_actions else (1, 2, world.action_dim)))
    assert action.shape[:2] == (1, 2) and name.startswith(world.family.name)

def test_kept_networks_are_evaluated(tmp_path):
    assert '| ldm | test | 27 |' in ldm(tmp_path, 'evaluate', ROOT/'data'/'weights'/'gridworld-ldm.safetensors')
    (tmp_path/'x.safetensors').write_bytes(b'none')
    assert 'x.safetensors is not a file of networks' in ldm(tmp_path, 'evaluate', 'x.safetensors', status=2)
