"Clusters: shares of seeds as jobs, on this machine and on a real SLURM, give the bytes of a run in one process."
import gzip, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
import slurm_here
from ldm_nb.lab import cli
from ldm_nb.lab.cluster import Resources, executor_of
from ldm_nb.lab.division import divide, groups_of, share_folders
from ldm_nb.lab.lock import at_work, locked
from ldm_nb.lab.share import Share, is_trained, read_note

submitit = pytest.importorskip('submitit')
SETS = ['--set', 'gamma=0.9,0.95', '--set', 'gru_hidden=8', '--set', 'workers=2']
CURVES = 'world', 'method', 'variant', 'seed', 'sweep', 'config', 'frames', 'train', 'test', 'per_task', 'by_task', 'sampled', 'tasks'


def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: cli.main([str(a) for a in argv])
    return e.value.code, *capsys.readouterr()

def process(*argv, cwd, env=None):
    "`ldm` as a process of its own"
    env = dict(env or os.environ, PYTHONPATH=str(Path(cli.__file__).parents[2]))
    log = open(Path(cwd)/'log', 'a')
    return subprocess.Popen([sys.executable, '-m', 'ldm_nb', *map(str, argv)], cwd=cwd, env=env, stdout=log, stderr=log)

def until(done, seconds=600, what=''):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f'{what or done} does not come about'
        time.sleep(.2)

def one_process(folder, gamma, seeds, frames):
    "The same run without a cluster"
    argv = f'train gridworld --method rl2 --gamma {gamma} --gru-hidden 8 --workers 2 --seeds {seeds} --frames {frames} --threads 1 --out {folder}'
    assert process(*argv.split(), cwd=folder.parent).wait() == 0
    return folder

def the_same(run, whole):
    "Every file with numbers has the same bytes"
    for f in ('metrics.jsonl', 'weights.safetensors', *(x.relative_to(whole) for x in whole.glob('checkpoint-*/seed-*'))):
        assert (run/f).read_bytes() == (whole/f).read_bytes(), f

def same_records(file, whole, name):
    "The records equal those of a run in one process, but for what says where and when it was trained"
    new, old = [json.loads(l) for l in gzip.decompress(file.read_bytes()).splitlines()], cli.run_records(whole)
    assert [r['sweep'] for r in new] == [name]*len(old)
    for a, b in zip(new, old):
        b = json.loads(json.dumps(b)) | dict(sweep=name, variant=a['variant'])
        assert json.dumps({k: a.get(k) for k in CURVES}) == json.dumps({k: b.get(k) for k in CURVES})


def test_sweep_on_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ['sweep', 'gridworld', '--method', 'rl2', *SETS, '--seeds', '3:5', '--frames', '480', '--name', 'first']
    code, out, err = ldm(capsys, *sweep, '--on', 'local')
    assert code == 0, err
    assert 'test return' in out and ' 0.95 |' in out
    for gamma in ('0.9', '0.95'):
        run, whole = tmp_path/f'runs/sweeps/first/first-gamma-{gamma}', one_process(tmp_path/gamma, gamma, '3:5', 480)
        the_same(run, whole)
        same_records(tmp_path/f'data/runs/gridworld-rl2-first-gamma-{gamma}.jsonl.gz', whole, 'first')
        assert not (run/'shares').exists()
    assert ldm(capsys, *sweep)[0] == 0 # all is recorded already
    code, out, _ = ldm(capsys, 'status', '--every', '0')
    assert code == 0 and 'shares: 2 done' in out
    code, out, _ = ldm(capsys, 'sweep-report', 'first', '--out', 'report.svg')
    assert code == 0 and ' 0.9 |' in out and (tmp_path/'report.svg').stat().st_size > 5000
    # another sweep of this name, and a second command while one works
    code, _, err = ldm(capsys, *sweep, '--seeds', '3:6')
    assert code == 2 and "another sweep with the name 'first' (other seeds)" in err and 'Traceback' not in err
    with locked(tmp_path/'runs/sweeps/first'): code, _, err = ldm(capsys, *sweep)
    assert code == 2 and 'is at work' in err

def test_preempted_killed_and_a_second_copy(tmp_path, monkeypatch):
    "submitit's checkpoint protocol, a killed training and a second copy of a job: each is seen to happen, and the bytes are the same"
    monkeypatch.chdir(tmp_path)
    whole = one_process(tmp_path/'whole', .9, '0:2', 96_000)
    argv = 'gridworld --method rl2 --gamma 0.9 --gru-hidden 8 --workers 2 --seeds 0:2 --frames 96000 --checkpoint-every 40 --threads 1'.split()
    run, cfg = cli.parse_train(argv)
    job = cli.assemble(cli.create(tmp_path/'run', cli.describe(run, cfg, argv)))
    one, two = divide(job, groups_of([0, 1], 1))
    env = str(Path(cli.__file__).parents[2])
    monkeypatch.setenv('PYTHONPATH', env)
    executor = executor_of('local', tmp_path/'jobs', Resources())
    jobs = [executor.submit(Share(str(p), cwd=str(tmp_path), poll=.5)) for p in (one, two)]
    for p in (one, two): until(lambda: list(p.glob('checkpoint-*0')), what='a checkpoint')
    second = executor.submit(Share(str(two), cwd=str(tmp_path), poll=.5)) # a copy of the second job
    until(lambda: read_note(two).get('state') == 'waiting', 120, 'a second copy that waits')
    controller = jobs[0]._process.pid # `_interrupt` of submitit would signal only this process, which ends
    os.kill(int(Path(f'/proc/{controller}/task/{controller}/children').read_text().split()[0]), signal.SIGUSR2) # as at a time limit
    until(lambda: 'Requeued' in jobs[0].stderr() + jobs[0].stdout(), 120, 'a job that is queued again')
    os.kill(int(at_work(two).split(':')[1]), 9) # the training of the second job dies; one of the copies goes on
    assert not is_trained(one) and not is_trained(two) # there was something left to train
    for p in (one, two): until(lambda: is_trained(p), what=f'the end of {p}')
    for j in (jobs[0], second): assert j.results()[0] == 'done'
    with locked(tmp_path/'run'): cli.join(tmp_path/'run', cli.on_cpu)
    for f in ('metrics.jsonl', 'weights.safetensors'): assert (tmp_path/'run'/f).read_bytes() == (whole/f).read_bytes()

def test_reproduce_in_jobs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tmp_path/'table.csv'
    table.write_text('figure,world,method,preset,variant,settings,seeds,frames\n'
                     '3,gridworld,rl2,paper,small,gru_hidden=8 workers=2,3:5,480 960\n')
    where = ['--table', table, '--data', tmp_path/'data/runs', '--runs', tmp_path/'runs']
    code, out, err = ldm(capsys, 'reproduce', '3', *where, '--on', 'local', '--list')
    assert code == 0 and 'core-hours' in out and not (tmp_path/'runs').exists()
    code, out, err = ldm(capsys, 'reproduce', '3', *where, '--on', 'local')
    assert code == 0, err
    rows = cli.read_table(table) and [json.loads(l) for l in gzip.open(tmp_path/'data/runs/gridworld-rl2-small.jsonl.gz')]
    assert [(r['seed'], r['frames'][-1]) for r in rows] == [(3, 960), (4, 960)]
    assert ldm(capsys, 'reproduce', '3', *where, '--list')[1].count('done') == 2

def test_a_share_that_always_fails(tmp_path, capsys, monkeypatch):
    "It is submitted again, then reported with the tail of its log; the other row is recorded"
    monkeypatch.chdir(tmp_path)
    sweep = ['sweep', 'gridworld', '--method', 'rl2', *SETS, '--seeds', '3', '--frames', '480', '--name', 'bad', '--retries', '1']
    real = cli.prepared
    def spoilt(folder, *args):
        parts = real(folder, *args)
        if folder.name.endswith('0.9'): (parts[0]/'config.json').write_text('{"frames": 480, "seeds": []}')
        return parts
    monkeypatch.setattr(cli, 'prepared', spoilt)
    monkeypatch.setattr(cli, 'status_table', lambda folders: 'a table')
    code, _, err = ldm(capsys, *sweep)
    assert code == 1 and 'failed 2 times' in err and 'ldm: ' in err.split('failed 2 times')[1]
    assert [p.name for p in (tmp_path/'data/runs').iterdir()] == ['gridworld-rl2-bad-gamma-0.95.jsonl.gz']

def test_all_seeds_of_a_setting_diverge(tmp_path, capsys, monkeypatch):
    "The command dies after it has taken them out; the next one records them, the table and the report show them"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path('mine.py').write_text('from ldm_nb.methods import rl2\n'
        'def update(cfg, *args):\n'
        '    state, metrics = rl2.METHOD.update(cfg, *args)\n'
        '    return state, {k: v*float("nan") if cfg.learner.gamma < .92 else v for k, v in metrics.items()}\n'
        'LOST = rl2.METHOD._replace(name="lost", update=update, stages=None)\n')
    sweep = ['sweep', 'gridworld', '--method', 'mine:LOST', *SETS, '--seeds', '3:5', '--frames', '480', '--name', 'lost', '--share', '1']
    with monkeypatch.context() as m:
        real = cli.record
        def dies(folders, *args, **kw):
            if 'taken-out' in str(folders): raise KeyboardInterrupt
            return real(folders, *args, **kw)
        m.setattr(cli, 'record', dies)
        assert ldm(capsys, *sweep)[0] == 130
    assert sorted(p.name for p in (tmp_path/'runs/sweeps/lost/lost-gamma-0.9').glob('[st]*')) == ['taken-out-1', 'taken-out-2']
    code, out, err = ldm(capsys, *sweep)
    assert code == 0, err
    rows = [json.loads(l) for l in gzip.open(tmp_path/'data/runs/gridworld-mine.LOST-lost-gamma-0.9.jsonl.gz')]
    assert [(r['seed'], bool(r['frozen'])) for r in rows] == [(3, True), (4, True)]
    assert re.search(r'0\.9 *\| *2 *\| *2 *\|', out) and re.search(r'0\.95 *\| *2 *\| *0 *\|', out), out
    monkeypatch.setattr(cli.Board, '__call__', lambda self, text: None)
    monkeypatch.setattr(type(cli.err), 'isatty', lambda self: True, raising=False)
    assert ldm(capsys, 'status')[0] == 0 # it ends, though the first row has no networks
    monkeypatch.undo(); monkeypatch.chdir(tmp_path)
    assert 'shares: 2 diverged, 1 done' in ldm(capsys, 'status', '--every', '0')[1]
    assert ldm(capsys, *sweep)[0] == 0 # nothing is trained again
    assert ldm(capsys, 'sweep-report', 'lost')[0] == 0

def test_several_devices(tmp_path, capsys, monkeypatch):
    "Two devices, both faked by the CPU, share the seeds; a stopped run goes on with `ldm resume`"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'devices_of', lambda device, count: ['cpu', 'cpu'])
    monkeypatch.setenv('PYTHONPATH', str(Path(cli.__file__).parents[2]))
    argv = 'train gridworld --method rl2 --gamma 0.9 --gru-hidden 8 --workers 2 --seeds 0:3 --frames 480 --out two'.split()
    real = cli.train_shares
    monkeypatch.setattr(cli, 'train_shares', lambda *args: 143)
    assert ldm(capsys, *argv)[0] == 143
    assert [p.name for p in share_folders('two')] == ['0-0', '1-2']
    monkeypatch.setattr(cli, 'train_shares', real)
    code, _, err = ldm(capsys, 'resume', 'two', '--frames', '960')
    assert code == 2 and 'is divided into 2 shares' in err
    code, out, err = ldm(capsys, 'resume', 'two')
    assert code == 0 and 'return' in out, err
    the_same(tmp_path/'two', one_process(tmp_path/'whole', .9, '0:3', 480))

@pytest.mark.parametrize('words,says', [
    (['--set', 'betta=1'], "did you mean 'beta'?"),
    (['--name', 'a/b'], 'a/b'),
    (['--on', 'slrum'], "did you mean 'slurm'?"),
    (['--cluster', 'nowhere.toml'], "cluster is 'nowhere.toml'"),
    (['--time-limit', 'soon'], "time_limit is 'soon'"),
    (['--time-limit', '1', '--share', '8', '--method', 'ldm'], 'from one evaluation'),
    (['--runs', 'file/x'], 'is not a folder'),
    (['--gpus', '-1'], 'gpus is -1'),
    (['--gpus', '1'], 'use ldm train --device cuda'),
    (['--set', 'gamma=0.9,0.90'], 'names a value twice'),
    (['--share', '-2'], 'share is -2')])
def test_bad_input(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').touch()
    monkeypatch.setattr(cli, 'estimate', lambda *a: (2000., ''))
    code, out, err = ldm(capsys, 'sweep', 'gridworld', '--seeds', '0:8', *words)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file']

def test_without_submitit_or_slurm(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    code, _, err = ldm(capsys, 'sweep', 'gridworld', '--on', 'slurm')
    assert code == 2 and 'no command sbatch' in err and len(err.strip().splitlines()) == 1
    monkeypatch.setitem(sys.modules, 'submitit', None)
    for argv in (['sweep', 'gridworld'], ['reproduce', '3', '--on', 'local', '--table', Path(__file__).parents[1]/'data/paper/experiments.csv']):
        code, _, err = ldm(capsys, *argv)
        assert code == 2 and "pip install 'ldm-nb[cluster]'" in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(slurm_here.missing()), reason=slurm_here.missing() or 'SLURM')
def test_slurm(tmp_path):
    "A real SLURM with two nodes: eight jobs; one node daemon is killed, one job is pre-empted; every byte as without a cluster"
    frames = 600_000 # jobs must still train when their node is lost, and when they are pre-empted
    slurm = slurm_here.Slurm(tmp_path/'slurm', cpus=8)
    try:
        home = tmp_path/'home'; home.mkdir()
        (home/'cluster.toml').write_text('partition = "low"\ntime_limit = "0:30:00"\npoll = 2\n')
        words = ['sweep', 'gridworld', '--method', 'rl2', *SETS, '--seeds', '0:4', '--frames', frames, '--name', 'eight', '--on', 'slurm']
        wrong = process(*words, '--partition', 'lwo', cwd=home, env=slurm.env)
        assert wrong.wait() == 2 and "no partition is called 'lwo'; did you mean 'low'?" in (home/'log').read_text()
        assert not (home/'runs').exists()
        driver = process(*words, cwd=home, env=slurm.env)
        root = home/'runs/sweeps/eight'
        parts = lambda: sorted(root.glob('*/shares/*/config.json'))
        def trains(): return [p.parent for p in parts() if at_work(p.parent)]
        until(lambda: len(parts()) == 8 and len(trains()) == 8, 400, 'eight jobs in training')
        where = lambda: {l.split()[0]: l.split()[1:] for l in slurm.run('squeue', '-h', '-o', '%i %N %T').stdout.splitlines()}
        before = where()
        print('running', before)
        assert {'one', 'two'} <= {v[0] for v in before.values()}
        orphans = [k for k, v in before.items() if v[0] == 'one']
        slurm.kill('one') # its step daemons go on
        until(lambda: any(where().get(k, ['', ''])[0] == 'two' and read_note_of(slurm, k) for k in orphans), 300, 'a second copy on the other node')
        waits = lambda: [p.parent.name for p in parts() if read_note(p.parent).get('state') == 'waiting']
        until(waits, 120, 'a second copy that waits')
        print('second copies', where(), waits())
        # a job of higher priority takes the CPUs of the other node
        pre = slurm.run('sbatch', '-p', 'high', '-w', 'two', '-c', '8', '-o', '/dev/null', '--wrap', 'sleep 3')
        assert pre.returncode == 0, pre.stderr
        until(lambda: 'queued again' in notes(root), 200, 'a pre-empted job')
        slurm.node('one') # the node comes back
        until(lambda: driver.poll() is not None, 2400, 'the end of the sweep')
        print((home/'log').read_text()[-3000:])
        assert driver.returncode == 0
        for gamma in ('0.9', '0.95'):
            whole = one_process(tmp_path/gamma, gamma, '0:4', frames)
            the_same(root/f'eight-gamma-{gamma}', whole)
            same_records(home/f'data/runs/gridworld-rl2-eight-gamma-{gamma}.jsonl.gz', whole, 'eight')
        jobs = slurm.run('sacct', '-D', '-X', '-o', 'JobID,State,NodeList,Start,End').stdout
        print(jobs)
        assert 'NODE_FAIL' in jobs and 'REQUEUED' in jobs and jobs.count('COMPLETED') == 9 and 'FAILED' not in jobs.replace('NODE_FAIL', '')
    finally: slurm.stop()

@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(slurm_here.missing()), reason=slurm_here.missing() or 'SLURM')
def test_slurm_that_cancels(tmp_path):
    "A partition that cancels the job it pre-empts, without a warning: the share is submitted again, and every byte is as without a cluster"
    slurm = slurm_here.Slurm(tmp_path/'slurm', warns=False)
    try:
        home = tmp_path/'home'; home.mkdir()
        (home/'cluster.toml').write_text('partition = "cancel"\ntime_limit = "0:30:00"\npoll = 2\n')
        driver = process('sweep', 'gridworld', '--method', 'rl2', *SETS[2:], '--set', 'gamma=0.9', '--seeds', '3', '--frames', 300_000, '--name', 'one', '--on', 'slurm', cwd=home, env=slurm.env)
        root = home/'runs/sweeps/one'
        trains = lambda: [p.parent for p in root.glob('*/shares/*/config.json') if at_work(p.parent)]
        until(trains, 120, 'a job in training')
        node = slurm.run('squeue', '-h', '-o', '%N').stdout.strip()
        assert slurm.run('sbatch', '-p', 'high', '-w', node, '-c', '4', '-o', '/dev/null', '--wrap', 'sleep 3').returncode == 0
        until(lambda: 'PREEMPTED' in slurm.run('sacct', '-X', '-n', '-o', 'State').stdout, 120, 'a cancelled job')
        until(lambda: driver.poll() is not None, 500, 'the end of the sweep')
        assert driver.returncode == 0, (home/'log').read_text()[-3000:]
        the_same(root/'one', one_process(tmp_path/'whole', '0.9', '3', 300_000))
        states = slurm.run('sacct', '-X', '-n', '-o', 'State').stdout.split()
        assert states.count('PREEMPTED') == 1 and states.count('COMPLETED') == 2
    finally: slurm.stop()

def notes(root): return [read_note(p.parent).get('state') for p in root.glob('*/shares/*/config.json')]

def read_note_of(slurm, job): return 'RUNNING' in slurm.run('squeue', '-h', '-j', job, '-o', '%T').stdout
