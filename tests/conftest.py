import os, sys
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'    # one thread a worker, and in the processes tests start
os.environ['MPLBACKEND'] = 'agg'
sys.path.insert(0, str(Path(__file__).parents[1]/'nbs/_site'))  # build, lint, nb, readme

import pytest, torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also the slow tests and `#| slow` cells')

def pytest_configure(config):
    if config.getoption('--slow'): os.environ['NB_FLAGS'] = os.environ.get('NB_FLAGS', '') + ' slow'

def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'): return
    slow = [i for i in items if i.get_closest_marker('slow')]
    if slow: config.hook.pytest_deselected(items=slow)
    items[:] = [i for i in items if not i.get_closest_marker('slow')]

@pytest.fixture
def no_pictures(monkeypatch):
    "Finished runs draw nothing: half the time of a short run, and tests of pictures draw their own"
    monkeypatch.setattr('ldm_nb.lab.jobs.pictures', lambda job: [])
