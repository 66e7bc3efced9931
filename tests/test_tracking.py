"`ldm train --track`: a tracker gets every evaluation, and nothing else changes."
import importlib.machinery, json, subprocess, sys, types

import pytest
from ldm_nb.lab.cli import main

pytestmark = pytest.mark.usefixtures('no_pictures')

SMALL = ['train', 'gridworld', '--method', 'rl2', '--seeds', '3,7', '--workers', '2', '--episodes', '1', '--gru-hidden', '8', '--threads', '1']  # an iteration has 60 frames

def ldm(*argv, status=0):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    assert e.value.code == status

def lines(run): return [json.loads(l) for l in (run/'metrics.jsonl').read_text(encoding='utf-8').splitlines()]

def in_tensorboard(run, seed):
    "name of a curve -> [(frames, value)] in order of frames; files of one second (only a test is that fast) are read in any order"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    seen = EventAccumulator(str(run/'tensorboard'/f'seed-{seed}')).Reload()
    return {k: sorted((e.step, e.value) for e in seen.Scalars(k)) for k in seen.Tags()['scalars']}

def same(run, seed):
    "Has TensorBoard the numbers of metrics.jsonl, each evaluation once?"
    rows, seen = [r for r in lines(run) if r['seed'] == seed], in_tensorboard(run, seed)
    assert seen['train'] == [(r['frames'], pytest.approx(r['train'])) for r in rows]
    assert seen['metrics/return'] == [(r['frames'], pytest.approx(r['metrics']['return'])) for r in rows if r['metrics']]
    return len(rows)

@pytest.fixture
def toy(monkeypatch):
    "A module in place of trackio -> the runs that it stored, name -> {frames: curves}"
    module, runs = types.ModuleType('trackio'), {}
    module.__spec__ = importlib.machinery.ModuleSpec('trackio', None)
    def init(project, name, config, resume, **kw):
        run = runs.setdefault(name, dict(config=config))
        def log(curves, step):
            assert step not in run, 'sent twice'
            run[step] = curves
        return types.SimpleNamespace(log=log)
    module.init, module.finish = init, lambda: None
    monkeypatch.setitem(sys.modules, 'trackio', module)
    return runs

def test_no_other_file_changes(tmp_path):
    "With a tracker the files are the same, byte for byte; timing.jsonl has the clock"
    for name, more in ('plain', []), ('tracked', ['--track', 'tensorboard']): ldm(*SMALL, '--frames', 180, *more, '--out', tmp_path/name)
    def files(run): return {str(f.relative_to(run)): f.read_bytes() for f in run.rglob('*') if f.is_file() and f.name not in ('timing.jsonl', 'lock')}
    plain, tracked = files(tmp_path/'plain'), files(tmp_path/'tracked')
    assert {k for k in tracked if k not in plain and not k.startswith('tensorboard/')} == {'tracking.json'}
    assert {k: tracked[k] for k in plain} == plain and 'metrics.jsonl' in plain
    assert same(tmp_path/'tracked', 7) == 2

def test_resume_continues_in_the_same_tracked_run(tmp_path, monkeypatch, capsys):
    "A run that lost its newest evaluations repeats them, and the tracker has each once; seeds may join"
    run = tmp_path/'run'
    monkeypatch.setattr('ldm_nb.lab.cli.eval_every', lambda *_: 2)
    ldm(*SMALL, '--frames', 240, '--checkpoint-every', 2, '--track', 'tensorboard', '--out', run)
    (run/'weights.safetensors').unlink()
    for f in (run/'checkpoint-4').iterdir(): f.unlink()
    (run/'checkpoint-4').rmdir()
    ldm('resume', run, '--frames', 360)
    assert [r['frames'] for r in lines(run) if r['seed'] == 3] == [0, 120, 240, 360] and same(run, 3) == 4
    ldm('resume', run, '--seeds', '5', '--frames', 480)
    assert same(run, 5) == 5 and same(run, 7) == 5
    assert 'tensorboard --logdir' in capsys.readouterr().err

def test_trackio(tmp_path, toy):
    run = tmp_path/'run'
    ldm(*SMALL, '--frames', 120, '--track', 'trackio', '--out', run)
    ldm('resume', run, '--frames', 240)
    assert sorted(k.split('/')[1] for k in toy) == ['seed-3', 'seed-7'] and len({k.split('/')[0] for k in toy}) == 1
    stored = next(v for k, v in toy.items() if k.endswith('seed-7'))
    assert stored['config']['gru_hidden'] == 8 and stored['config']['seed'] == 7 and stored['config']['world'] == 'gridworld'
    assert [k for k in stored if k != 'config'] == [r['frames'] for r in lines(run) if r['seed'] == 7] == [0, 120, 240]
    assert stored[240]['test'] == lines(run)[-1]['test']

def test_missing_package(tmp_path, toy, monkeypatch, capsys):
    "One line that names the extra, and nothing is written; the same on resume"
    run = tmp_path/'run'
    ldm(*SMALL, '--frames', 60, '--track', 'trackio', '--out', run)
    monkeypatch.setitem(sys.modules, 'trackio', None)
    before = (run/'config.json').read_bytes()
    capsys.readouterr()
    ldm(*SMALL, '--frames', 60, '--track', 'trackio', '--out', tmp_path/'other', status=2)
    assert capsys.readouterr().err == "ldm: trackio is not installed: pip install 'ldm-nb[trackio]'\n" and not (tmp_path/'other').exists()
    ldm('resume', run, '--frames', 120, status=2)
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f"pip install 'ldm-nb[trackio]', or delete {run/'tracking.json'}" in said
    assert (run/'config.json').read_bytes() == before
    ldm(*SMALL, '--frames', 60, '--track', 'wandb', '--out', tmp_path/'other', status=2)
    assert 'there are: tensorboard, trackio' in capsys.readouterr().err

def test_nobody_else_imports_a_tracker():
    code = 'import sys, ldm_nb.lab.cli, ldm_nb.lab.library; print([m for m in ("tensorboard", "trackio", "pandas") if m in sys.modules])'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.strip() == '[]', r.stderr
