"""The command line from end to end: whole runs, interrupted ones, and everything a person may get wrong."""
import dataclasses, gzip, json, multiprocessing, os, resource, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from ldm_nb.lab import jobs, presets
from ldm_nb.methods import rl2
from ldm_nb.lab.cli import main
from ldm_nb.lab.presets import METHODS, refusal
from ldm_nb.lab.config import read_config

LDM = [sys.executable, '-c', 'from ldm_nb.lab.cli import main; main()']
QUICK = ['--posteriors', '4', '--transitions', '4', '--vae-batch', '4']


def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    out = capsys.readouterr()
    return e.value.code, out.out, out.err

def lines(path): return [json.loads(l) for l in path.read_text().splitlines()]


GRIDS = [pytest.param(w, m, marks=[pytest.mark.slow]*(w != 'gridworld' and m not in ('rl2', 'ldm'))) # the other grid has the same code
         for w in ('gridworld', 'gridworld-extrapolation') for m in METHODS if not refusal('gridworld', m)]

@pytest.mark.parametrize('world,method', GRIDS)
def test_whole_run(method, world, tmp_path, capsys):
    run, more = tmp_path/'run', QUICK[:6 if method == 'ldm' else 0]
    if method in ('emaml', 'promp'): more = ['--workers', '8', '--rollouts', '4'] # 1,920 frames in two stages
    code, out, err = ldm(capsys, 'train', world, '--method', method, '--seeds', '3,7', '--frames', '5000', '--out', run, *more)
    assert code == 0, err
    assert f'| {method} | test |' in out
    files = {p.name for p in run.iterdir()}
    assert {'config.json', 'metrics.jsonl', 'timing.jsonl', 'weights.safetensors', 'table.md', 'checkpoint-3', 'curves.png', 'path.png'} <= files
    assert ('imagined.png' in files) == (method == 'ldm')
    assert sorted(p.name for p in (run/'checkpoint-3').iterdir()) == ['seed-3.pt', 'seed-7.pt']
    rows = lines(run/'metrics.jsonl')
    assert [(r['seed'], r['frames']) for r in rows] == [(3, 0), (7, 0), (3, 5760), (7, 5760)]
    assert all(r['test_goals_missed'] >= r['test_goals_never'] for r in rows)
    code, out, _ = ldm(capsys, 'evaluate', run)
    assert code == 0 and out.count('\n') > 45
    code, out, _ = ldm(capsys, 'plot', run)
    assert code == 0 and 'curves.png' in out
    code, out, _ = ldm(capsys, 'record', run, '--data', tmp_path/'data', '--variant', 'tiny')
    assert code == 0 and out.strip().endswith(f'{world}-{method}-tiny.jsonl.gz')
    rec = [json.loads(l) for l in gzip.decompress(Path(out.strip()).read_bytes()).splitlines()]
    assert [r['seed'] for r in rec] == [3, 7] and len(rec[0]['per_task']) == 45 == len(rec[0]['tasks'])
    assert {'world', 'method', 'variant', 'seed', 'config', 'versions', 'commit', 'frames', 'train', 'test', 'first_train', 'first_test',
            'test_goals_missed', 'seconds', 'device', 'threads', 'command'} <= rec[0].keys()
    assert '--out' not in rec[0]['command']

def test_comparison(tmp_path, capsys):
    for m in ('rl2', 'varibad'): assert ldm(capsys, 'train', 'gridworld', '--method', m, '--seeds', '1', '--frames', '2000', '--out', tmp_path/m)[0] == 0
    code, out, _ = ldm(capsys, 'plot', tmp_path/'rl2', tmp_path/'varibad', '--out', tmp_path/'both.png')
    assert code == 0 and (tmp_path/'both.png').stat().st_size > 5000

@pytest.mark.parametrize('method,seeds', [('ldm', '3,7'), ('ldm', '7'), ('varibad', '3,7'), ('rl2', '3,7')])
def test_resume_is_the_same_run(method, seeds, tmp_path, capsys, monkeypatch):
    "Ctrl-C in the middle, then resume, by two processes: byte for byte the uninterrupted run of one process"
    args = ['train', 'gridworld', '--method', method, '--seeds', seeds, '--frames', '12000', *(QUICK if method == 'ldm' else [])]
    assert ldm(capsys, *args, '--threads', '1', '--out', tmp_path/'whole')[0] == 0
    args += ['--threads', '2']
    tick = jobs.Sink.tick
    def interrupting(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == 3: os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', interrupting)
        assert ldm(capsys, *args, '--out', tmp_path/'half')[0] == 130
    assert not (tmp_path/'half'/'weights.safetensors').exists()
    assert ldm(capsys, 'evaluate', tmp_path/'half')[0] == 2  # not at its end yet
    assert ldm(capsys, 'resume', tmp_path/'half')[0] == 0
    for name in ('metrics.jsonl', 'weights.safetensors', 'table.md', 'path.png'):
        assert (tmp_path/'whole'/name).read_bytes() == (tmp_path/'half'/name).read_bytes(), name
    assert [read_config(tmp_path/x)['threads'] for x in ('whole', 'half')] == [1, 2]
    code, out, _ = ldm(capsys, 'resume', tmp_path/'half')  # finished already
    assert code == 0 and f'| {method} | test |' in out

@pytest.mark.parametrize('seeds', ['3,7', '7'])
@pytest.mark.usefixtures('no_pictures')
def test_a_killed_helper_is_named(seeds, tmp_path, capsys, monkeypatch):
    "A process of the run is killed from outside: a short message and status 1, no traceback, and resume goes on"
    tick = jobs.Sink.tick
    def killing(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == 3: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    args = ['train', 'gridworld', '--seeds', seeds, '--frames', '12000', '--checkpoint-every', '2', '--threads', '2', *QUICK]
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', killing)
        code, _, err = ldm(capsys, *args, '--out', tmp_path/'run')
    assert code == 1 and 'a process of this run has died' in err and 'Traceback' not in err
    assert not multiprocessing.active_children()
    assert ldm(capsys, 'resume', tmp_path/'run')[0] == 0

def test_bench(tmp_path, capsys):
    "One line of JSON with all that is promised, and the same as text; nowhere to write is found out first"
    file = tmp_path/'bench.jsonl'
    code, out, _ = ldm(capsys, 'bench', '--method', 'rl2', '--seeds', '0:2', '--threads', '2', '--iterations', '1', '--json', file)
    r, = lines(file)
    assert code == 0 and f"{r['frames_per_s']:,} frames/s" in out and r['threads'] == 2 and r['compiled'] is False
    assert {'world', 'method', 'seeds', 'device', 'matmul_gflops', 'flop_per_frame', 'shares', 'peak_memory_gib', 'versions',
            'machine', 'commit', 'command', 'date'} <= r.keys()
    assert '--json' not in r['command'] and set(r['shares']) == {'noise', 'rollout', 'policy', 'evaluation'}
    code, out, err = ldm(capsys, 'bench', '--json', tmp_path)
    assert code == 2 and 'cannot write there' in err and not out
    code, out, err = ldm(capsys, 'bench', '--json', tmp_path/'new'/'bench.jsonl')
    assert code == 2 and 'there is no folder' in err and not out and not (tmp_path/'new').exists()

def test_interrupt_and_resume(tmp_path):
    run = tmp_path/'run'
    p = subprocess.Popen([*LDM, 'train', 'gridworld', '--method', 'rl2', '--seeds', '1', '--frames', '1e6', '--threads', '1', '--out', str(run)], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (run/'metrics.jsonl').exists(): break
        time.sleep(.1)
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and f'continue with: ldm resume {run}' in err
    done = int(next(run.glob('checkpoint-*')).name.split('-')[1])
    assert 0 < done < 500
    r = subprocess.run([*LDM, 'resume', str(run), '--frames', str((done + 3)*1920)], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    frames = [x['frames'] for x in lines(run/'metrics.jsonl')]
    assert frames == sorted(set(frames)) and frames[-1] == (done + 3)*1920


BAD = {
    'unknown world': (['train', 'gridwrld'], "did you mean 'gridworld'?"),
    'unknown method': (['train', 'gridworld', '--method', 'rl3'], "did you mean 'rl2'?"),
    'unknown preset': (['train', 'gridworld', '--preset', 'papr'], "did you mean 'paper'?"),
    'unknown command': (['tran'], "did you mean 'train'?"),
    'no frames': (['train', 'gridworld', '--frames', '0'], 'frames are'),
    'frames not finite': (['train', 'gridworld', '--frames', 'inf'], 'frames are'),
    'seeds empty': (['train', 'gridworld', '--seeds', '3:3'], 'empty range'),
    'seeds twice': (['train', 'gridworld', '--seeds', '3,3'], 'twice'),
    'seeds nonsense': (['train', 'gridworld', '--seeds', 'three'], 'seeds are'),
    'choice': (['train', 'gridworld', '--weights', 'skalar'], "did you mean 'scalar'?"),
    'range': (['train', 'gridworld', '--p-drop', '2'], 'p_drop is 2.0: allowed is'),
    'nan': (['train', 'gridworld', '--beta', 'nan'], 'beta is nan'),
    'size': (['train', 'gridworld', '--gru-hidden', '0'], 'gru_hidden is 0'),
    'mixture': (['train', 'gridworld', '--mixture-workers', '16'], 'at least one of the 16 workers'),
    'posteriors': (['train', 'gridworld', '--posteriors', '122'], 'has only 121'),
    'no sizes': (['train', 'gridworld', '--policy-layers'], 'policy_layers is empty'),
    'decoder': (['train', 'gridworld', '--decoder', 'multi-head'], 'single-head'),
    'idle setting': (['train', 'gridworld', '--method', 'varibad', '--p-drop', '0.5'], 'no effect'),
    'cuda': (['train', 'gridworld', '--device', 'cuda:77'], 'GPUs'),
    'device': (['train', 'gridworld', '--device', 'tpu'], 'choose cpu or cuda'),
    'threads': (['train', 'gridworld', '--threads', '99999'], 'threads is 99999: allowed is 1 to 4096, or 0 for all cores'),
    'no workers': (['train', 'gridworld', '--workers', '0'], 'workers is 0: there must be at least one'),
    'one worker': (['train', 'gridworld', '--workers', '1'], 'must leave the only worker normal'),
    "another method's": (['train', 'gridworld', '--method', 'rl2', '--beta', '2'], 'beta is a setting of ldm, not of rl2'),
    "another world's": (['train', 'gridworld', '--contact-forces'], 'contact_forces is an option of ant-dir, ant-goal'),
    'many seeds': (['train', 'gridworld', '--seeds', '0:20000000'], 'at most 1024'),
    'far too many seeds': (['train', 'gridworld', '--seeds', '0:9999999999'], 'at most 1024'),
    'digits of a seed': (['train', 'gridworld', '--seeds', '9'*5000], 'at most 1024'),
    'digits of frames': (['train', 'gridworld', '--frames', '9'*5000], 'frames are'),
    'digits': (['train', 'gridworld', '--threads', '9'*5000], 'a number of 5000 digits is too large'),
    'digits of a setting': (['train', 'gridworld', '--workers=' + '9'*5000], 'workers is 9999'),
    'digits of a size': (['train', 'gridworld', '--policy-layers', '16', '9'*5000], 'policy_layers is 9999'),
    'digits of iterations': (['bench', '--iterations', '9'*5000], 'iterations is 9999'),
    'one folder twice': (['plot', 'a', './a'], 'one folder is named twice'),
    'plot nowhere': (['plot', 'a', 'b', '--out', 'none/x.png'], 'there is no folder none'),
    'plot as what': (['plot', 'a', 'b', '--out', 'x.gif'], '.png, .pdf, .svg'),
    'measure': (['reproduce', '--measure'], 'it goes with --list'),
    'checkpoint': (['train', 'gridworld', '--checkpoint-every', '0'], 'from 1 to'),
    'variant': (['train', 'gridworld', '--variant', '../x'], 'use letters'),
    'no run': (['evaluate', 'nowhere'], 'not a run folder'),
    'no run to resume': (['resume', 'nowhere'], 'not a run folder'),
    'nothing to record': (['record'], 'at least one run'),
    'list': (['list', '--method', 'lmd'], "did you mean 'ldm'?"),
}

@pytest.mark.parametrize('argv,says', BAD.values(), ids=BAD.keys())
def test_bad_input(argv, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ldm(capsys, *argv)
    plain = ' '.join(err.replace('│', ' ').split())
    assert code == 2 and says in plain and 'Traceback' not in err and len(plain) < 600
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('argv,says', [(['train', 'gridworld', '--gama', '0.9'], '--gamma'), (['train', 'gridworld', '--workers', 'many'], 'many'),
                                       (['train'], 'world'), (['evaluate'], 'run')])
def test_bad_options(argv, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ldm(capsys, *argv)
    assert code == 2 and says in out + err and 'Traceback' not in out + err
    assert not list(tmp_path.iterdir())

def test_folder_that_exists(tmp_path, capsys):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'mine.txt').write_text('keep')
    code, _, err = ldm(capsys, 'train', 'gridworld', '--out', tmp_path/'run')
    assert code == 2 and 'exists already' in err and [p.name for p in (tmp_path/'run').iterdir()] == ['mine.txt']

def test_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path/'file').write_text('')
    code, _, err = ldm(capsys, 'train', 'gridworld', '--out', tmp_path/'file'/'run')
    assert code == 2 and 'cannot write' in err

def test_full_disk(tmp_path):
    "No room for a checkpoint: status 1 and a short message, and the checkpoint before it stays whole"
    run, small = tmp_path/'run', lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    def go(*argv, **kw): return subprocess.run([*LDM, *argv], capture_output=True, text=True, **kw)
    assert go('train', 'gridworld', '--method', 'rl2', '--seeds', '1', '--frames', '2000', '--out', run).returncode == 0
    before = (run/'checkpoint-2'/'seed-1.pt').read_bytes()
    r = go('resume', run, '--frames', '6000', preexec_fn=small)
    assert r.returncode == 1 and 'File too large' in r.stderr and 'Traceback' not in r.stderr
    assert (run/'checkpoint-2'/'seed-1.pt').read_bytes() == before
    assert go('resume', run).returncode == 0

def test_damaged_config(tmp_path, capsys):
    run = tmp_path/'run'
    assert ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '1', '--frames', '2000', '--out', run)[0] == 0
    whole = (run/'config.json').read_text()
    for text, status, says in ((whole[:100], 1, 'damaged'), (whole.replace('"gamma"', '"gama"'), 1, 'was changed after it was written')):
        (run/'config.json').write_text(text)
        code, _, err = ldm(capsys, 'evaluate', run)
        assert code == status and says in err
    (run/'config.json').write_text(whole)
    (run/'checkpoint-2'/'seed-1.pt').write_bytes(b'torn')
    before = (run/'metrics.jsonl').read_bytes()
    code, _, err = ldm(capsys, 'resume', run, '--frames', '4000')
    assert code == 1 and 'no checkpoint' in err and (run/'metrics.jsonl').read_bytes() == before
    (run/'metrics.jsonl').write_text('{"seed": 1}\nnot json\n{"seed": 1}\n')
    assert ldm(capsys, 'record', run, '--data', tmp_path)[0] == 1

def test_older_checkpoint_serves(tmp_path, capsys):
    run = tmp_path/'run'
    assert ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '1', '--frames', '8000', '--checkpoint-every', '2', '--out', run)[0] == 0
    want = (run/'weights.safetensors').read_bytes()
    assert sorted(p.name for p in run.glob('checkpoint-*')) == ['checkpoint-4', 'checkpoint-5']
    (run/'checkpoint-5'/'seed-1.pt').write_bytes(b'torn')
    code, _, err = ldm(capsys, 'resume', run)
    assert code == 0 and 'damaged' in err and (run/'weights.safetensors').read_bytes() == want

def test_every_seed_diverges(tmp_path, capsys, monkeypatch):
    "The record names iteration and term, the checkpoint holds the last good values, and the status is 1"
    def update(cfg, world, state, traj, noise, i):
        state, metrics = rl2.update(cfg, world, state, traj, noise, i)
        return state, {k: v*float('nan') if i == 2 and k == 'value' else v for k, v in metrics.items()}
    monkeypatch.setitem(presets.METHODS, 'rl2', dataclasses.replace(presets.METHODS['rl2'], method=rl2.METHOD._replace(update=update)))
    run = tmp_path/'run'
    code, _, err = ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '3,7', '--frames', '8000', '--out', run)
    assert code == 1 and 'seed 3: value not finite in iteration 2' in err
    assert [r['frozen'] for r in lines(run/'metrics.jsonl')[-2:]] == [dict(iteration=2, term='value')]*2
    assert [p.name for p in run.glob('checkpoint-*')] == ['checkpoint-2']
    assert ldm(capsys, 'resume', run)[0] == 1

def test_one_seed_diverges(tmp_path, capsys, monkeypatch):
    "The other goes on and is all the table speaks of; the lines of the frozen one say why and when"
    def update(cfg, world, state, traj, noise, i):
        state, metrics = rl2.update(cfg, world, state, traj, noise, i)
        return state, {k: v*torch.tensor([1., float('nan')]) if i == 1 and k == 'policy' else v for k, v in metrics.items()}
    monkeypatch.setitem(presets.METHODS, 'rl2', dataclasses.replace(presets.METHODS['rl2'], method=rl2.METHOD._replace(update=update)))
    run = tmp_path/'run'
    code, out, err = ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '3,7', '--frames', '5000', '--threads', '1', '--out', run)
    assert code == 0 and 'seed 7 was frozen in iteration 1: policy not finite' in err and '±' not in out
    last = lines(run/'metrics.jsonl')[-2:]
    assert [r.get('frozen') for r in last] == [None, dict(iteration=1, term='policy')] and last[1]['metrics']['policy'] is None

def test_records_of_other_settings_stay_apart(tmp_path, capsys):
    for name, more in dict(a=[], b=['--gamma', '0.9']).items():
        assert ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '1', '--frames', '2000', '--out', tmp_path/name, *more)[0] == 0
    assert ldm(capsys, 'record', tmp_path/'a', '--data', tmp_path/'data')[0] == 0
    code, _, err = ldm(capsys, 'record', tmp_path/'b', '--data', tmp_path/'data')
    assert code == 2 and '--variant' in err
    assert ldm(capsys, 'record', tmp_path/'b', '--data', tmp_path/'data', '--variant', '../x')[0] == 2
    assert ldm(capsys, 'record', tmp_path/'b', '--data', tmp_path/'data', '--variant', 'gamma0.9')[0] == 0
    assert sorted(p.name for p in (tmp_path/'data').iterdir()) == ['gridworld-rl2-gamma0.9.jsonl.gz', 'gridworld-rl2.jsonl.gz']

def test_list(capsys):
    code, out, _ = ldm(capsys, 'list', '--preset', 'release')
    assert code == 0 and 'gridworld-extrapolation' in out and '--kl-weight' in out and 'per-dimension' in out
    assert ldm(capsys, '--version')[1].startswith('ldm_nb ')

@pytest.mark.parametrize('command', ['train', 'resume', 'check', 'evaluate', 'plot', 'render', 'record', 'reproduce', 'bench', 'list'])
def test_help(command, capsys):
    code, out, _ = ldm(capsys, command, '--help')
    assert code == 0 and 'usage: ldm ' + command in out
