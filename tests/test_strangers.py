"""What strangers met: many processes at once, processes that are not ours, streams that are gone, folders that were edited."""
import contextlib, errno, fcntl, json, multiprocessing, os, shutil, signal, subprocess, sys, threading, time, warnings
from pathlib import Path

import pytest
import torch

from ldm_nb.lab import cli, crew, jobs, presets
from ldm_nb.methods import rl2
from ldm_nb.training.trainer import Stage
from ldm_nb.lab.cli import main
from ldm_nb.lab.presets import load_agent
from ldm_nb.core.errors import RunError, Unable
from ldm_nb.core.files import write_file, write_json
from ldm_nb.core.seeds import tree_map
from ldm_nb.evaluation.records import read_records
from ldm_nb.lab.config import new_config, read_config, write_config
from ldm_nb.lab.checkpoints import checkpoints, measured, read_seed
from ldm_nb.lab.runs import new_run, record
from test_faults import die, forked

pytestmark = pytest.mark.usefixtures('no_pictures')

LDM = [sys.executable, '-c', 'from ldm_nb.lab.cli import main; main()']
FORK = multiprocessing.get_context('fork')


def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    out = capsys.readouterr()
    assert 'Traceback' not in out.err, out.err
    return e.value.code, out.out, out.err

def train(out, *more, method='rl2', seeds='3,7', frames=4*1920, world='gridworld'):
    return ['train', world, '--method', method, '--seeds', seeds, '--frames', str(frames), '--checkpoint-every', '2', '--threads', '1', '--out', str(out), *more]

def start(*argv, **kw): return subprocess.Popen([*LDM, *map(str, argv)], **kw)

def at_once(n, body):
    "`body(k)` in n processes that begin together, their exit codes"
    gate = FORK.Barrier(n)
    def one(k):
        sys.stdout = sys.stderr = open(os.devnull, 'w')
        gate.wait()
        os._exit(body(k))
    with warnings.catch_warnings(action='ignore'):
        ps = [FORK.Process(target=one, args=(k,)) for k in range(n)]
        for p in ps: p.start()
    for p in ps: p.join()
    return [p.exitcode for p in ps]

@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    "A finished run of two seeds"
    folder = tmp_path_factory.mktemp('strangers')/'run'
    p = forked(train(folder)); p.join()
    assert p.exitcode == 0
    return folder

@pytest.fixture
def copy(finished, tmp_path): return Path(shutil.copytree(finished, tmp_path/'copy'))

def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.name != 'lock'}

def as_seed(folder, seed, to):
    "A run folder that says it is of one other seed"
    to.mkdir()
    shutil.copy(folder/'timing.jsonl', to)
    write_config(to, dict(read_config(folder), seeds=[seed], tasks=[[0., 2.]]))
    rows = [json.dumps(dict(r, seed=seed, by_task=[1.]) | dict(per_task=[[1.]])) for r in measured(folder)[3]]
    (to/'metrics.jsonl').write_text('\n'.join(rows) + '\n')
    return to


# 2. Many at once

@pytest.mark.slow
def test_many_records_at_once(finished, tmp_path):
    "Eight processes record fifty seeds each into one file: all four hundred are in it"
    def body(k):
        for i in range(50):
            one = as_seed(finished, 50*k + i, tmp_path/f'{k}-{i}')
            try: record([one], tmp_path/'data')
            except Exception: return 1
            shutil.rmtree(one)
        return 0
    assert at_once(8, body) == [0]*8
    file, = [p for p in (tmp_path/'data').iterdir()]
    assert [r['seed'] for r in read_records(file)] == list(range(400))

def test_many_begin_one_run(tmp_path):
    "Eight processes begin the same new run, fifty times: one does, the others are refused and change nothing"
    config = new_config('gridworld', 'rl2', [3], 1920)
    gate, results = FORK.Barrier(8), FORK.Queue()
    def body(k):
        for i in range(50):
            gate.wait()
            try:
                with new_run(folder := tmp_path/f'run-{i}', dict(config, command=f'ldm by {k}')):
                    assert read_config(folder)['command'] == f'ldm by {k}'
                    (folder/'metrics.jsonl').write_text(f'{k}\n')
                results.put((i, k))
            except RunError: pass
            gate.wait()
        return 0
    def run(k):
        code = body(k)
        results.close(); results.join_thread()
        return code
    seen = []
    reader = threading.Thread(target=lambda: [seen.append(results.get()) for _ in range(50)])
    reader.start()
    assert at_once(8, run) == [0]*8
    reader.join(10)
    assert sorted(i for i, _ in seen) == list(range(50))
    for i, k in seen: assert read_config(tmp_path/f'run-{i}')['command'] == f'ldm by {k}'

def test_files_written_at_once(tmp_path):
    "Eight processes write one file: it is always whole, and nothing is left beside it"
    def body(k):
        for i in range(50): write_file(tmp_path/'x.json', lambda p: p.write_text(json.dumps([k]*20_000)))
        return 0
    assert at_once(8, body) == [0]*8
    assert len(json.loads((tmp_path/'x.json').read_text())) == 20_000 and len(list(tmp_path.iterdir())) == 1


# 4. Processes that are not ours

def test_in_a_pool(finished, tmp_path):
    "A worker of a pool is a daemon: the run is made in one process, byte for byte"
    argv = [a for a in train(tmp_path/'run')]
    argv[argv.index('--threads') + 1] = '2'
    with warnings.catch_warnings(action='ignore'), FORK.Pool(1) as pool: status = pool.apply(status_of, (argv,))
    assert status == 0
    assert (tmp_path/'run'/'weights.safetensors').read_bytes() == (finished/'weights.safetensors').read_bytes()

def status_of(argv):
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    try: main(argv)
    except SystemExit as e: return e.code

def test_in_a_thread(finished, tmp_path, capsys):
    "No handlers, no helpers, the same bytes; and the thread count of torch is what it was"
    before, handler, got = torch.get_num_threads(), signal.getsignal(signal.SIGTERM), []
    t = threading.Thread(target=lambda: got.append(cli.dispatch(train(tmp_path/'run')))); t.start(); t.join()
    assert got == [0] and torch.get_num_threads() == before and signal.getsignal(signal.SIGTERM) is handler
    assert (tmp_path/'run'/'weights.safetensors').read_bytes() == (finished/'weights.safetensors').read_bytes()

def test_the_process_is_left_as_it_was(tmp_path, capsys, monkeypatch):
    "torch's threads, the handlers of signals and the priority, in a notebook"
    torch.set_num_threads(2)
    monkeypatch.setattr(os, 'nice', lambda n: pytest.fail('the priority of a process that is not ours'))
    try:
        before = [signal.getsignal(s) for s in crew.STOPS]
        assert cli.dispatch(train(tmp_path/'run')) == 0
        assert torch.get_num_threads() == 2 and [signal.getsignal(s) for s in crew.STOPS] == before
        (tmp_path/'t.csv').write_text('figure,world,method,preset,variant,settings,seeds,frames\n3,gridworld,rl2,paper,,,3:4,1920\n')
        where = ['--table', tmp_path/'t.csv', '--data', tmp_path/'data', '--runs', tmp_path/'runs', '--threads', '1']
        assert cli.dispatch(['reproduce', *map(str, where)]) == 0
    finally: torch.set_num_threads(1)

def test_after_a_gpu(finished, tmp_path, capsys, monkeypatch):
    "A process that has used a GPU makes no forks; and one that only asks for a GPU's name has not used it"
    run = Path(shutil.copytree(finished, tmp_path/'run'))
    write_config(run, dict(read_config(run), device='cuda', compile=True, threads=2))
    monkeypatch.setattr(torch.cuda, '_lazy_init', lambda: pytest.fail('a GPU was touched'))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *a: pytest.fail('a GPU was touched'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr('ldm_nb.lab.graphs.compiler_works', lambda: '' if os.getpid() != me else pytest.fail('the compiler looked at the GPU here'))
    monkeypatch.setattr('ldm_nb.core.devices.compiling', contextlib.nullcontext); monkeypatch.setattr(jobs, 'compiling', lambda on: contextlib.nullcontext())
    me = os.getpid()
    assert ldm(capsys, 'resume', run, '--device', 'cpu', '--frames', 6*1920)[0] == 0
    assert read_config(run)['segments'][-1]['device'] == 'cpu'
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    assert crew.cores(4, 4) == 1

def test_a_run_that_could_not_begin_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'Sink', lambda job: 1/0)
    with pytest.raises(ZeroDivisionError): cli.dispatch(train(tmp_path/'new'/'run'))
    assert not list(tmp_path.iterdir())


# 5. Output is not the result

@pytest.mark.parametrize('how', ['2>&-', '>&-', '>&- 2>&-', '2>&1 | head -1', '> /dev/full', '2> /dev/full'])
def test_streams_that_are_gone(how, finished, tmp_path):
    "Closed, full, or read by nobody: the run is made, status 0"
    line = ' '.join(["'" + a.replace("'", "'\\''") + "'" for a in [*LDM, *train('run')]])
    every = 'import ldm_nb.lab.jobs as j; old = j.Sink.__init__; j.Sink.__init__ = lambda self, job: old(self, job, 0.); '
    line = line.replace('from ldm_nb.lab.cli', every + 'from ldm_nb.lab.cli')
    r = subprocess.run(['bash', '-c', f'set -o pipefail; {line} {how}'], cwd=tmp_path, capture_output=True)
    assert r.returncode == 0, r.stderr
    assert (tmp_path/'run'/'weights.safetensors').read_bytes() == (finished/'weights.safetensors').read_bytes()
    assert b'Traceback' not in r.stderr and b'Exception ignored' not in r.stderr

def test_an_ascii_terminal(tmp_path):
    env = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    r = subprocess.run([*LDM, *train(tmp_path/'ré')], env=env, capture_output=True)
    assert r.returncode == 0 and b'+-' in r.stdout, r.stderr
    r = subprocess.run([*LDM, 'train', '--help'], env=env, capture_output=True)
    assert r.returncode == 0 and b'Traceback' not in r.stderr

@pytest.mark.parametrize('error', [ValueError('a fault of ours'), RuntimeError('CUDA error: an illegal memory access'), OSError('no name'), UnicodeEncodeError('ascii', 'é', 0, 1, 'x')])
def test_faults_of_ours_are_not_bad_input(error, monkeypatch, capsys):
    def broken(argv): raise error
    monkeypatch.setattr(cli, 'dispatch', broken)
    with pytest.raises(type(error)): main(['list'])

@pytest.mark.parametrize('error', [MemoryError(), torch.OutOfMemoryError('CUDA out of memory'), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OSError(errno.ENOMEM, 'Cannot allocate memory')])
def test_memory(error, monkeypatch, capsys):
    def broken(argv): raise error
    monkeypatch.setattr(cli, 'dispatch', broken)
    code, _, err = ldm(capsys, 'list')
    assert code == 1 and 'use fewer seeds' in err


# 6. Asked to stop

@pytest.mark.parametrize('name', ['SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGTERM'])
def test_every_signal_saves(name, finished, tmp_path, capsys, monkeypatch):
    "Sent to every process of the run"
    sig, tick = getattr(signal, name), jobs.Sink.tick
    def hit(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == 3:
            for p in [os.getpid(), *(c.pid for c in multiprocessing.active_children())]: os.kill(p, sig)
    argv = train(tmp_path/'a b'/'run')
    argv[argv.index('--threads') + 1] = '2'
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', hit)
        code, _, err = ldm(capsys, *argv)
    assert code == 128 + sig and checkpoints(tmp_path/'a b'/'run')[-1].name == 'checkpoint-3'
    assert err.splitlines()[-1].endswith(f"continue with: ldm resume '{tmp_path}/a b/run'")
    assert ldm(capsys, 'resume', tmp_path/'a b'/'run')[0] == 0
    assert (tmp_path/'a b'/'run'/'weights.safetensors').read_bytes() == (finished/'weights.safetensors').read_bytes()

def test_an_ignored_hangup_stays_ignored(tmp_path, capsys, monkeypatch):
    tick = jobs.Sink.tick
    def hit(self, progress, metrics):
        tick(self, progress, metrics)
        os.kill(os.getpid(), signal.SIGHUP)
    monkeypatch.setattr(jobs.Sink, 'tick', hit)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try: assert ldm(capsys, *train(tmp_path/'run'))[0] == 0
    finally: signal.signal(signal.SIGHUP, before)


# 7. What an error number means

def test_no_locks(copy, capsys, monkeypatch):
    "A file system without locks: said once, and the run goes on; nobody is named as being at work"
    (copy/'lock').write_text('1\n')
    def none(*a): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', none)
    code, _, err = ldm(capsys, 'resume', copy, '--frames', 6*1920)
    assert code == 0 and err.count('has no locks (No locks available)') == 1, err
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 0 and 'at work' not in out

def test_a_number_of_no_process(copy, capsys, monkeypatch):
    "Somebody holds the lock, but the number in the file is of a process that runs no more"
    gone = subprocess.Popen(['true']); gone.wait()
    (copy/'lock').write_text(f'{gone.pid}\n')
    def busy(*a): raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')
    monkeypatch.setattr(fcntl, 'lockf', busy)
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 2 and 'another process (unknown) is at work' in err
    assert f'process {gone.pid}' not in ldm(capsys, 'check', copy)[1]


# 12. Promises

def spoilt(m, when, world='gridworld'):
    "Weights become huge in an iteration, so that the next rollout is spoilt"
    entry = presets.METHODS['rl2']
    def update(cfg, world, state, traj, noise, i, *a):
        state, metrics = rl2.update(cfg, world, state, traj, noise, i, *a)
        if i == when: state = dict(state, params=dict(state['params'], heads=tree_map(lambda x: x*1e30, state['params']['heads'])))
        return state, metrics
    import dataclasses
    method = entry.method._replace(update=update, stages=dict(policy=Stage(update, ('encoder', 'heads'))))
    m.setitem(presets.METHODS, 'rl2', dataclasses.replace(entry, method=method))

SMALL = ['--workers', '4', '--minibatches', '2']

def test_the_checkpoint_of_a_robot_that_diverged(tmp_path, capsys, monkeypatch):
    "Not the networks whose rollout was not finite: one step further back"
    run = tmp_path/'run'
    with monkeypatch.context() as m:
        spoilt(m, 1, 'cheetah-vel')
        code, _, err = ldm(capsys, *train(run, *SMALL, world='cheetah-vel', frames=4*800, seeds='3'))
    assert code == 1 and 'in iteration 2' in err and 'checkpoint-2 holds the last good values' in err
    world, agent = load_agent(run, 3)
    h, obs = agent.start(2), torch.zeros(1, 2, world.obs_dim + 1)
    action, value = agent.act(h, obs, torch.zeros(1, 2, world.action_dim))
    assert action.abs().max() < 100
    whole = tmp_path/'whole'
    assert ldm(capsys, *train(whole, *SMALL, world='cheetah-vel', frames=1*800, seeds='3'))[0] == 0
    a, b = (read_seed(x)[0] for x in (run/'checkpoint-2'/'seed-3.pt', whole/'checkpoint-1'/'seed-3.pt'))
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith('params'))

def test_diverged_in_the_first_iteration(tmp_path, capsys, monkeypatch):
    "There is no checkpoint, and none is spoken of; evaluations do not stand there twice"
    def update(cfg, world, state, traj, noise, i):
        state, metrics = rl2.update(cfg, world, state, traj, noise, i)
        return state, {k: v*float('nan') for k, v in metrics.items()}
    import dataclasses
    monkeypatch.setitem(presets.METHODS, 'rl2', dataclasses.replace(presets.METHODS['rl2'], method=rl2.METHOD._replace(update=update)))
    code, _, err = ldm(capsys, *train(tmp_path/'run'))
    assert code == 1 and 'nothing had been learnt' in err and 'last good values' not in err
    assert [r['frames'] for r in measured(tmp_path/'run')[3]] == [0] and not checkpoints(tmp_path/'run')
    code, out, _ = ldm(capsys, 'check', tmp_path/'run')
    assert code == 0 and 'begins again' in out

def stopped(copy, capsys, monkeypatch, n=5):
    "A finished run that is extended and stopped"
    tick = jobs.Sink.tick
    def hit(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == n: os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', hit)
        assert ldm(capsys, 'resume', copy, '--frames', 8*1920)[0] == 143

def test_finished_weights_stay_usable(copy, capsys, monkeypatch):
    want = ldm(capsys, 'evaluate', copy)[1]
    stopped(copy, capsys, monkeypatch)
    code, out, err = ldm(capsys, 'evaluate', copy)
    assert code == 0 and out == want
    assert ldm(capsys, 'plot', copy)[0] == 0
    out = ldm(capsys, 'check', copy)[1]
    assert 'ldm evaluate works, on weights of 7,680 frames a seed' in out and 'continues from checkpoint-5' in out
    assert ldm(capsys, 'resume', copy)[0] == 0
    assert 'on weights of 15,360 frames' in ldm(capsys, 'check', copy)[1]

def swapped(run):
    a, b = (run/'checkpoint-4'/f'seed-{s}.pt' for s in (3, 7))
    was = a.read_bytes(); a.write_bytes(b.read_bytes()); b.write_bytes(was)

def older_file(run): shutil.copy(run/'checkpoint-2'/'seed-3.pt', run/'checkpoint-4'/'seed-3.pt')

def both_older(run):
    for s in (3, 7): shutil.copy(run/'checkpoint-2'/f'seed-{s}.pt', run/'checkpoint-4'/f'seed-{s}.pt')

@pytest.mark.parametrize('spoil', [swapped, older_file, both_older])
def test_check_and_resume_agree(spoil, copy, capsys):
    "On files that are whole, but not what their names say"
    spoil(copy)
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'unfit' in out and 'continues from checkpoint-2' in out.splitlines()[-1]
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 0 and 'checkpoint-4' in err and 'trying the one before' in err

def test_garbage_in_timing(copy, capsys):
    with open(copy/'timing.jsonl', 'a') as f: f.write('garbage\n{"frames": 9, "seconds": "x"}\n')
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'refuses' in out and 'timing.jsonl, line' in out
    before = contents(copy)
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 1 and 'timing.jsonl, line' in err and contents(copy) == before

def test_a_figure_of_the_gridworld_needs_no_simulator(tmp_path, capsys, monkeypatch):
    "Rows of robots stand in the table of experiments, and MuJoCo is missing"
    def missing(*a): raise Unable('no MuJoCo here')
    monkeypatch.setattr(presets, 'load', missing)
    where = ['--data', tmp_path/'data', '--runs', tmp_path/'runs', '--table', Path(__file__).parents[1]/'data/paper/experiments.csv']
    code, _, err = ldm(capsys, 'reproduce', '3', '--minutes', '0.00001', *where)
    assert code == 0, err
    code, _, err = ldm(capsys, *train(tmp_path/'run', world='cheetah-vel'))
    assert code == 1 and 'no MuJoCo here' in err and not (tmp_path/'run').exists()


# 13. Damaged or edited folders

@pytest.mark.parametrize('old,new', [('"method": "rl2"', '"method": "ldm"'), ('"world": "gridworld"', '"world": "gridworld-extrapolation"'), ('"gamma": 0.95', '"gamma": 0.9')])
def test_an_edited_config(old, new, copy, capsys, tmp_path):
    text = (copy/'config.json').read_text()
    assert old in text
    (copy/'config.json').write_text(text.replace(old, new))
    before = contents(copy)
    for command in ('evaluate', 'plot', 'resume', 'record', 'render'):
        more = ['--data', tmp_path/'data'] if command == 'record' else []
        code, _, err = ldm(capsys, command, copy, *more)
        assert code == 1 and 'was changed after it was written' in err and contents(copy) == before
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'damaged' in out

@pytest.mark.parametrize('change', [dict(method='varibad'), dict(world='gridworld-extrapolation'), dict(config={'gamma': .5}), dict(tasks=[[0., 0.]])])
def test_an_edited_config_without_its_seal(change, copy, capsys, tmp_path):
    "Checkpoints and weights know of what run they are"
    config = read_config(copy)
    config['config'] |= change.pop('config', {})
    write_json(copy/'config.json', config | change)
    before = contents(copy)
    for command in ('evaluate', 'plot', 'resume', 'record'):
        code, _, err = ldm(capsys, command, copy, *(['--data', tmp_path/'data'] if command == 'record' else []))
        assert code in (1, 2) and contents(copy) == before, command
    assert 'refuses' in ldm(capsys, 'check', copy)[1]

def test_lost_timings(copy, tmp_path, capsys):
    "They hold only the clock's times: nothing stops without them"
    (copy/'timing.jsonl').unlink()
    for command in ('check', 'evaluate', 'plot', 'resume', 'record'):
        assert ldm(capsys, command, copy, *(['--data', tmp_path/'data'] if command == 'record' else []))[0] == 0, command

@pytest.mark.parametrize('name', ['metrics.jsonl', 'timing.jsonl', 'config.json'])
def test_deep_nesting(name, copy, capsys):
    (copy/name).write_text('['*100_000 + '\n{}\n')
    for command in ('check', 'resume'): assert ldm(capsys, command, copy)[0] == 1

@pytest.mark.parametrize('entry', ['tasks', 'versions', 'machine', 'seeds', 'commit', 'command', 'config'])
@pytest.mark.parametrize('value', [None, 5, 'x', [None], 'missing'])
def test_entries_of_another_type(entry, value, copy, capsys, tmp_path):
    "In a folder of before there was a seal: one line for every command, no traceback"
    if (entry, value) in (('commit', None), ('commit', 'x'), ('command', 'x')): pytest.skip('that may be so')
    info = read_config(copy)
    if value == 'missing': del info[entry]
    else: info[entry] = value
    write_json(copy/'config.json', info)
    for command in ('evaluate', 'plot', 'resume', 'record', 'render'):
        code, _, err = ldm(capsys, command, copy, *(['--data', tmp_path/'data'] if command == 'record' else []))
        assert code == 2 and f'{entry} is' in err and 'allowed is' in err

@pytest.mark.parametrize('what', ['garbage', *(pytest.param(k, marks=pytest.mark.slow) for k in ('list', 'words', 'file'))])
def test_garbage_of_newcomers(what, copy, capsys):
    new = copy/'newcomers'
    if what == 'file': new.write_text('x')
    else:
        new.mkdir()
        (new/'config.json').write_text(dict(garbage='{', list='[1]', words=json.dumps(dict(read_config(copy), wanted='x', until='y')))[what])
    assert ldm(capsys, 'check', copy)[0] == 0
    assert ldm(capsys, 'resume', copy)[0] == 0
    assert ldm(capsys, 'resume', copy, '--seeds', '9')[0] == 0 and read_config(copy)['seeds'] == [3, 7, 9]

@pytest.mark.parametrize('name', ['checkpoint-9', 'checkpoint-6', 'checkpoint.tmp', 'checkpoint.gone', 'checkpoint-4.was'])
def test_a_file_named_like_a_checkpoint(name, copy, capsys):
    (copy/name).write_text('x')
    assert ldm(capsys, 'check', copy)[0] in (0, 1)
    assert ldm(capsys, 'resume', copy, '--frames', 6*1920)[0] == 0
    assert [c.name for c in checkpoints(copy)] == ['checkpoint-4', 'checkpoint-6']


# 14. Bits before the first checkpoint

def test_killed_before_the_first_checkpoint(tmp_path):
    "Networks are made after the process is set up, also by a resume: the same weights on any number of threads"
    env = dict(os.environ, OMP_NUM_THREADS='4')
    for run in ('whole', 'killed'):
        patch = 'import os, signal, ldm_nb.lab.jobs as j; old = j.Sink.tick; j.Sink.tick = lambda s, p, m: (old(s, p, m), p.iteration == 1 and os.kill(os.getpid(), signal.SIGKILL)); '
        code = (patch if run == 'killed' else '') + 'from ldm_nb.lab.cli import main; main()'
        r = subprocess.run([sys.executable, '-c', code, *train(tmp_path/run, method='ldm', frames=2*1920)], env=env, capture_output=True)
        assert r.returncode == (-signal.SIGKILL if run == 'killed' else 0), r.stderr
    r = subprocess.run([*LDM, 'resume', str(tmp_path/'killed')], env=env, capture_output=True)
    assert r.returncode == 0, r.stderr
    for name in ('weights.safetensors', 'metrics.jsonl'): assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes(), name

def test_a_run_of_a_gpu_where_none_is(copy, capsys, monkeypatch):
    write_config(copy, dict(read_config(copy), device='cuda:7'))
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 2 and 'use --device cpu' in err
    code, _, err = ldm(capsys, 'resume', copy, '--device', 'gpu')
    assert code == 2 and "device is 'gpu'" in err and 'config.json' not in err


# 15. Records

def test_what_a_record_refuses(finished, copy, tmp_path, capsys):
    data = tmp_path/'data'
    code, out, err = ldm(capsys, 'record', finished, '--data', data)
    assert code == 0 and 'recorded: seeds 3, 7' in err and out.strip().endswith('gridworld-rl2.jsonl.gz')
    before = Path(out.strip()).read_bytes()
    code, out, err = ldm(capsys, 'record', finished, '--data', data)
    assert code == 0 and 'nothing new' in err
    for name, more in dict(short=dict(frames=2*1920, seeds='9'), longer=dict(frames=6*1920, seeds='9'), preset=dict(frames=4*1920, seeds='9')).items():
        p = forked(train(tmp_path/name, *['--preset', 'quick', '--policy-lr', '.0007', '--encoder-lr', '.0007']*(name == 'preset'), **more)); p.join()
        code, _, err = ldm(capsys, 'record', tmp_path/name, '--data', data)
        assert code == 2 and 'name yours with --variant' in err and Path(out.strip()).read_bytes() == before, (name, err)
        assert ldm(capsys, 'record', tmp_path/name, '--data', data, '--variant', name)[0] == 0
    rows = (copy/'metrics.jsonl').read_text().splitlines(True)
    (copy/'metrics.jsonl').write_text(''.join(rows[:1] + rows))
    assert 'unfit' in ldm(capsys, 'check', copy)[1]
    code, _, err = ldm(capsys, 'record', copy, '--data', data)
    assert code == 1 and 'out of order' in err and Path(out.strip()).read_bytes() == before
    Path(out.strip()).write_bytes(before[:-9])
    code, _, err = ldm(capsys, 'record', finished, '--data', data)
    assert code == 1 and out.strip() in err and 'is damaged' in err

def test_metrics_of_another_type(copy, tmp_path, capsys):
    rows = [json.loads(l) for l in (copy/'metrics.jsonl').read_text().splitlines()]
    for bad in (dict(rows[0], train='x'), {k: v for k, v in rows[-1].items() if k != 'test'}):
        (copy/'metrics.jsonl').write_text('\n'.join(json.dumps(bad if (r['seed'], r['frames']) == (bad['seed'], bad['frames']) else r) for r in rows) + '\n')
        for command in ('record', 'plot'):
            code, _, err = ldm(capsys, command, copy, *(['--data', tmp_path/'data'] if command == 'record' else []))
            assert code == 1 and 'metrics.jsonl' in err


# 21. Two that reproduce the same

def test_two_that_begin_the_same_row(tmp_path):
    (tmp_path/'t.csv').write_text('figure,world,method,preset,variant,settings,seeds,frames\n3,gridworld,rl2,paper,,,3:5,4000\n3,gridworld,rl2,release,release,,3:5,4000\n')
    where = ['--table', tmp_path/'t.csv', '--data', tmp_path/'data'/'runs', '--runs', tmp_path/'runs', '--threads', '1']
    def body(k):
        try: main(['reproduce', *map(str, where)])
        except SystemExit as e: return e.code
    codes = at_once(2, body)
    assert set(codes) <= {0, 2} and 0 in codes # 2: all else is done, the other one is at work in what is left
    assert sorted(p.name for p in (tmp_path/'data'/'runs').iterdir()) == ['gridworld-rl2-release.jsonl.gz', 'gridworld-rl2.jsonl.gz']
    assert len(list((tmp_path/'runs').glob('*/*'))) == 2
