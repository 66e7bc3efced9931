"""Runs that survive: every fault of the page `faults`, caused on purpose."""
import contextlib, errno, json, multiprocessing, os, random, resource, shutil, signal, socket, subprocess, sys, tempfile, time, warnings
from pathlib import Path

import pytest
import torch

from ldm_nb.lab import checkpoints as saving, jobs, presets, stacks
from ldm_nb.methods import rl2
from ldm_nb.policy import onpolicy
from ldm_nb.lab.cli import main
from ldm_nb.core.files import write_json
from ldm_nb.core.seeds import flat, generators, tree_map
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.lab.lock import locked
from ldm_nb.lab.presets import METHODS, ROBOT_WORLDS, WORLDS, assemble, load_agent, preset, refusal
from ldm_nb.lab.config import read_config
from ldm_nb.lab.checkpoints import checkpoints, measured, read_seed, save_checkpoint, sealed, unseal
from ldm_nb.lab.runs import run_records
from ldm_nb.training.trainer import Progress

QUICK = ['--posteriors', '4', '--transitions', '4', '--vae-batch', '4', '--vae-updates', '1']
PEARL = '--workers 2 --chunk 400 --prior-steps 200 --initial-steps 400 --replay-size 900 --updates 2 --meta-batch 2 --task-batch 8 --hidden 8 --train-tasks 2 --evaluate-every 3200'.split()
OWN = dict(pearl=PEARL, mql='--horizon 50 --chunk 50 --workers 16 --initial-steps 100 --replay-size 900 --updates 2 --rl-batch 8 --history 4 --hidden 8 --train-tasks 8 --explore-episodes 1 --new-updates 2 --old-updates 2 --old-batch 8 --evaluate-every 3200'.split(),
           mier=[*PEARL, *'--first-size 400 --model-layers 8 --explore-episodes 1 --model-updates 2 --rl-updates 2 --adapt-batch 8 --real-steps 2 --task-batch 8'.split()])
STEP = ['--workers', '8', '--rollouts', '4'] # eight tasks of four rollouts, 1,920 frames in two stages
MORE = dict(ldm=QUICK, emaml=STEP, promp=STEP) # method -> options that make it small; a new method is tested by being in METHODS
FRAMES, N = 8*1920, 8


pytestmark = pytest.mark.usefixtures('no_pictures')

@pytest.fixture(autouse=True)
def often(monkeypatch):
    "An evaluation every second iteration, with robots every fourth"
    monkeypatch.setattr(presets, 'default_interval', lambda world: 2*1920 if world.n_actions else 4*800)

def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    out = capsys.readouterr()
    assert 'Traceback' not in out.err
    return e.value.code, out.out, out.err

# Every world and method, later ones too: beside all methods of the gridworld, one method of each other kind of world; the others are slow tests
GRID = [m for m, e in METHODS.items() if not e.oracle and not refusal('gridworld', m)]
SAVED = {('rl2', 'gridworld'), ('ldm', 'gridworld')} # killed at every moment; the others with --slow, since all save by the same code
JOINING = {'rl2', 'ldm', 'emaml'} # without --slow one method of each kind of learner
FAST = {*(('gridworld', m) for m in GRID), ('cheetah-vel', 'pearl'), ('cheetah-vel', 'mql'), ('cheetah-vel', 'mier'), ('gridworld-extrapolation', 'rl2'), ('cheetah-vel', 'ldm')}
CASES = [pytest.param(m, w, id=f'{w}-{m}', marks=[pytest.mark.xdist_group(f'{w}-{m}'), *[pytest.mark.slow]*((w, m) not in FAST)])
         for w in WORLDS for m in METHODS if not refusal(w, m)]

def smaller(world, method):
    "Options that make a run small, a robot's iterations 800 frames"
    if world not in ROBOT_WORLDS: return MORE.get(method, [])
    if method in ('emaml', 'promp'): return ['--workers', '2', '--rollouts', '4', '--horizon', '100']
    if method in OWN: return OWN[method]
    own = [*QUICK, '--buffer-size', '20'] if method[:3] in ('ldm', 'var') else []
    return ['--workers', '4', '--minibatches', '2', *own, *['--mixture-workers', '1']*(method == 'ldm')]

def train(out, method='rl2', seeds='3,7', threads=1, frames=FRAMES, world='gridworld'):
    frames = frames*800//1920 if world in ROBOT_WORLDS else frames
    return ['train', world, '--method', method, '--seeds', seeds, '--frames', str(frames), '--checkpoint-every', '3',
            '--threads', str(threads), '--out', str(out), *smaller(world, method)]

def forked(argv, patch=lambda: None):
    "A process that changes itself by `patch` and then runs the command; it says nothing"
    def body():
        patch()
        null = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2): os.dup2(null, fd)
        sys.stdout = sys.stderr = open(os.devnull, 'w')
        main(argv)
    p = multiprocessing.get_context('fork').Process(target=body)
    with warnings.catch_warnings(action='ignore'): p.start()
    return p

def die(): os.kill(os.getpid(), signal.SIGKILL)

@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    "method, seeds, world -> the folder of a run that nobody disturbed"
    made = {}
    def run(method='rl2', seeds='3,7', world='gridworld'):
        if (key := (method, seeds, world)) not in made:
            made[key] = folder = tmp_path_factory.mktemp('whole')/'run'
            p = forked(train(folder, method, seeds, world=world))
            p.join()
            assert p.exitcode == 0
        return made[key]
    return run

@pytest.fixture
def copy(whole, tmp_path):
    "A finished run to be spoilt"
    return Path(shutil.copytree(whole(), tmp_path/'copy'))

def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.name != 'lock'}

def same_run(a, b):
    "Weights, moments, buffers, noise and measurements, byte for byte"
    a, b = ({k: v for k, v in contents(x).items() if not k.startswith(('config', 'timing')) and not k.endswith('.png')} for x in (a, b))
    assert a.keys() == b.keys()
    for k in a: assert a[k] == b[k], k


# Killed

def at_iteration(n):
    "Dead after an iteration"
    tick = jobs.Sink.tick
    def dying(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == n: die()
    jobs.Sink.tick = dying

def in_a_file(n):
    "Dead in the middle of the n-th file of a seed"
    write, count = saving.write_file, iter(range(1, 10**6))
    def dying(path, what):
        if Path(path).name.startswith('seed-') and next(count) == n:
            what(path := Path(str(path) + '.tmp'))
            os.truncate(path, path.stat().st_size//2)
            die()
        write(path, what)
    saving.write_file = dying

def at_a_rename(n):
    "Dead right after the n-th rename of a folder or a file, before anything else"
    replace, count = os.replace, iter(range(1, 10**6))
    def dying(*a):
        replace(*a)
        if next(count) == n: die()
    os.replace = dying

def in_a_removal(n):
    "Dead when an old checkpoint has lost the first of its files"
    remove, count = shutil.rmtree, iter(range(1, 10**6))
    def dying(path, **kw):
        if (files := sorted(Path(path).glob('seed-*'))) and next(count) == n: files[0].unlink(); die()
        remove(path, **kw)
    shutil.rmtree = dying

MOMENTS = {'iteration 5': (at_iteration, 5), 'file 4': (in_a_file, 4), 'rename 7': (at_a_rename, 7), # 7: of the second checkpoint
           'removal 1': (in_a_removal, 1)}

def when_killed():
    "Every case at every moment; without --slow the other moments, of saving, with two methods alone, since all save by the same code"
    for case in CASES:
        for k, moment in enumerate(MOMENTS):
            marks = [*case.marks, *[pytest.mark.slow]*(k > 0 and case.values not in SAVED)]
            yield pytest.param(*case.values, moment, id=f'{case.id}-{moment}', marks=marks)

@pytest.mark.parametrize('method,world,moment', list(when_killed()))
def test_killed(method, world, moment, whole, tmp_path, capsys):
    "SIGKILL, then resume: the same run to the last byte"
    patch, n = MOMENTS[moment]
    p = forked(train(tmp_path/'run', method, world=world), lambda: patch(n))
    p.join()
    assert p.exitcode == -signal.SIGKILL
    code, _, err = ldm(capsys, 'resume', tmp_path/'run')
    assert code == 0, err
    same_run(whole(method, world=world), tmp_path/'run')
    assert ldm(capsys, 'check', tmp_path/'run')[0] == 0

@pytest.mark.slow
@pytest.mark.parametrize('method,world', CASES)
def test_killed_at_twenty_moments(method, world, whole, tmp_path, capsys):
    "By the clock, from outside, again and again; also while it goes on"
    rng, start = random.Random(method), time.monotonic()
    p = forked(train(tmp_path/'first', method, world=world)); p.join()
    length = time.monotonic() - start
    for k in range(20):
        p = forked(train(run := tmp_path/f'run{k}', method, threads=1 + k % 2, world=world))
        time.sleep(rng.uniform(0, length)); p.kill(); p.join()
        if not (run/'config.json').exists(): continue # not even begun
        p = forked(['resume', str(run)])
        time.sleep(rng.uniform(0, length)); p.kill(); p.join()
        code, _, err = ldm(capsys, 'resume', run)
        assert code == 0, err
        same_run(whole(method, world=world), run)

@pytest.mark.parametrize('method,seeds', [('rl2', '3,7'), ('ldm', '7')])
def test_killed_with_helpers(method, seeds, whole, tmp_path, capsys):
    "The master of two processes is killed; those that are left hold no lock, and the same bytes come of it"
    p = forked(train(tmp_path/'run', method, seeds, threads=2), lambda: at_iteration(5))
    p.join()
    assert p.exitcode == -signal.SIGKILL
    assert ldm(capsys, 'resume', tmp_path/'run')[0] == 0
    same_run(whole(method, seeds), tmp_path/'run')


# Asked to stop

def signalling(monkeypatch, n, *signals, children=False):
    tick = jobs.Sink.tick
    def hit(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration != n: return
        for s in signals:
            for c in multiprocessing.active_children()*children: os.kill(c.pid, s)
            os.kill(os.getpid(), s)
    monkeypatch.setattr(jobs.Sink, 'tick', hit)

@pytest.mark.parametrize('sig,status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_once(sig, status, whole, tmp_path, capsys, monkeypatch):
    "Every process of the run is told, as by a terminal or a scheduler; it saves, and says last how to go on"
    with monkeypatch.context() as m:
        signalling(m, 4, sig, children=True)
        code, _, err = ldm(capsys, *train(tmp_path/'run', threads=2))
    assert code == status and err.splitlines()[-1].endswith(f"continue with: ldm resume {tmp_path/'run'}")
    assert checkpoints(tmp_path/'run')[-1].name == 'checkpoint-4'
    assert ldm(capsys, 'resume', tmp_path/'run')[0] == 0
    same_last(whole(), tmp_path/'run')

def same_last(a, b):
    "A run that was saved at other moments: its end"
    for name in ('metrics.jsonl', 'weights.safetensors', 'table.md', *(f'checkpoint-{N}/seed-{s}.pt' for s in (3, 7))):
        assert (a/name).read_bytes() == (b/name).read_bytes(), name

def test_asked_before_the_first_iteration(whole, tmp_path, capsys, monkeypatch):
    "Nothing is done yet that could be saved: the run begins again"
    measure = jobs.measure
    def hit(*a): measure(*a); os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as m:
        m.setattr(jobs, 'measure', hit)
        code, _, err = ldm(capsys, *train(tmp_path/'run'))
    assert code == 130 and err.splitlines()[-1].endswith(f"continue with: ldm resume {tmp_path/'run'}")
    assert not checkpoints(tmp_path/'run')
    job = assemble(tmp_path/'run')
    save_checkpoint(tmp_path/'run', job.progress, job.gens) # as earlier versions did
    assert ldm(capsys, 'resume', tmp_path/'run')[0] == 0
    same_run(whole(), tmp_path/'run')

def test_asked_twice(whole, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as m:
        signalling(m, 4, signal.SIGINT, signal.SIGINT)
        code, _, err = ldm(capsys, *train(tmp_path/'run'))
    assert code == 130 and 'stopped at once' in err and err.splitlines()[-1] == f"continue with: ldm resume {tmp_path/'run'}"
    assert [c.name for c in checkpoints(tmp_path/'run')] == ['checkpoint-3']
    assert ldm(capsys, 'resume', tmp_path/'run')[0] == 0
    same_run(whole(), tmp_path/'run')


# Disks

@pytest.fixture
def small_disk(tmp_path):
    (d := tmp_path/'disk').mkdir()
    r = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(d)], capture_output=True, text=True)
    if r.returncode: pytest.skip(f'no right to mount a small disk: {r.stderr.strip()}')
    yield d
    subprocess.run(['umount', '-l', str(d)], check=True)

def test_disk_full(small_disk, whole, capsys, monkeypatch):
    "A real full disk"
    run, filler = small_disk/'run', small_disk/'filler'
    with monkeypatch.context() as m:
        signalling(m, 4, signal.SIGTERM)
        assert ldm(capsys, *train(run))[0] == 143
    before = contents(run)
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):
        while os.write(fd, bytes(4096)): pass
    os.close(fd)
    code, _, err = ldm(capsys, 'resume', run)
    assert code == 1 and 'No space left' in err and err.splitlines()[-1] == f'continue with: ldm resume {run}'
    assert all(contents(run)[k] == v for k, v in before.items() if k.startswith('checkpoint'))
    filler.unlink()
    assert ldm(capsys, 'resume', run)[0] == 0
    same_last(whole(), run)

@pytest.mark.parametrize('n,file', [(3, 'checkpoint.tmp'), (4, 'metrics.jsonl')])
def test_disk_full_of_itself(n, file, small_disk, whole, capsys, monkeypatch):
    "A real disk that is full to the last byte when a checkpoint, or a measurement, is due"
    run, filler, tick = small_disk/'run', small_disk/'filler', jobs.Sink.tick
    def filling(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration != n: return
        with open(run/'metrics.jsonl', 'ab') as f, contextlib.suppress(OSError): # blank lines: the page at its end is full as well
            if n == 4: f.write(b'\n'*(-f.tell() % 4096))
        with open(filler, 'wb', buffering=0) as f, contextlib.suppress(OSError):
            while f.write(bytes(4096)): pass
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', filling)
        code, _, err = ldm(capsys, *train(run))
    assert code == 1 and 'No space left' in err and file in err and err.splitlines()[-1] == f'continue with: ldm resume {run}'
    assert [c.name for c in checkpoints(run)] == ['checkpoint-3']*(n > 3)
    filler.unlink()
    assert ldm(capsys, 'resume', run)[0] == 0
    same_run(whole(), run)

def full(*a, **kw): raise OSError(errno.ENOSPC, 'No space left on device')

def full_in_a_file(m):
    "The second seed's file of the second checkpoint gets half of its bytes"
    write, count = saving.write_file, iter(range(1, 10**6))
    def short(path, what):
        if Path(path).name.startswith('seed-') and next(count) == 4:
            Path(str(path) + '.tmp').write_bytes(b'half')
            full()
        write(path, what)
    m.setattr(saving, 'write_file', short)

def full_in_metrics(m):
    "The first seed's line and half of the other's"
    append = jobs.append_jsonl
    def short(path, rows):
        if rows[0]['frames'] < 4*1920 or 'seed' not in rows[0]: return append(path, rows)
        with open(path, 'a') as f: f.write(json.dumps(rows[0]) + '\n' + json.dumps(rows[1])[:30])
        full()
    m.setattr(jobs, 'append_jsonl', short)

@pytest.mark.parametrize('how', [full_in_a_file, full_in_metrics])
def test_disk_full_anywhere(how, whole, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as m:
        how(m)
        code, _, err = ldm(capsys, *train(run := tmp_path/'run'))
    assert code == 1 and 'No space left' in err and err.splitlines()[-1] == f'continue with: ldm resume {run}'
    assert not (run/'checkpoint.tmp').exists()
    assert ldm(capsys, 'resume', run)[0] == 0
    same_run(whole(), run)

def test_read_only(whole, capsys):
    "Also for root, who may write anywhere, by being somebody else for a while"
    d = Path(tempfile.mkdtemp())
    run = Path(shutil.copytree(whole(), d/'run'))
    for p in (d, *d.rglob('*')): p.chmod(0o555 if p.is_dir() else 0o444)
    before, me = contents(run), os.geteuid()
    try:
        if me == 0: os.seteuid(65534)
        code, _, err = ldm(capsys, 'resume', run, '--frames', 12*1920)
        assert code == 2 and f'cannot write to {run}' in err
        assert ldm(capsys, 'check', run)[0] == 0 == ldm(capsys, 'evaluate', run)[0]
    finally: os.seteuid(me)
    assert contents(run) == before
    for p in (d, *d.rglob('*')): p.chmod(0o755)
    shutil.rmtree(d)


def test_not_enough_memory(whole, tmp_path, capsys):
    "The process may have no more of it than it has"
    said, tick = tmp_path/'said', jobs.Sink.tick
    def no_more():
        def at(self, progress, metrics):
            tick(self, progress, metrics)
            if progress.iteration != 5: return
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
            sys.stderr = open(2, 'w', closefd=False)
            have = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (have, have))
            self.held = torch.ones(10**9)
        jobs.Sink.tick = at
    p = forked(train(run := tmp_path/'run'), no_more)
    p.join()
    assert p.exitcode == 1 and 'not enough memory' in said.read_text()
    assert said.read_text().splitlines()[-1] == f'continue with: ldm resume {run}'
    assert ldm(capsys, 'resume', run)[0] == 0
    same_run(whole(), run)


# Damage

def test_torn_metrics(copy, whole, capsys):
    "The last line is torn: what it measured is measured again"
    path = copy/'metrics.jsonl'
    os.truncate(path, path.stat().st_size - 9)
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 0 and 'missing in metrics.jsonl' in err
    same_run(whole(), copy)

def test_shortened_metrics(copy, whole, capsys):
    "Of three evaluations nothing is left but what checkpoint-6 knows; then not even that"
    path = copy/'metrics.jsonl'
    text = path.read_text().splitlines(True)
    path.write_text(''.join(text[:8]))
    assert ldm(capsys, 'check', copy)[0] == 1
    assert ldm(capsys, 'resume', copy)[0] == 0
    same_run(whole(), copy)
    path.write_text(''.join(text[2:4]))
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 0 and 'lacks evaluations' in err
    assert (copy/'weights.safetensors').read_bytes() == (whole()/'weights.safetensors').read_bytes()

def test_metrics_that_are_no_text(copy, whole, capsys):
    "Junk behind the last line is dropped; within a line it is named, and what `check` says of it is what `resume` then does"
    path, before = copy/'metrics.jsonl', (copy/'metrics.jsonl').read_bytes()
    path.write_bytes(before + b'\xff\xfe\x00')
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 0 and 'an incomplete one' in out
    assert ldm(capsys, 'resume', copy)[0] == 0
    same_run(whole(), copy)
    first = before.index(b'\n')
    path.write_bytes(before[:first + 9] + b'\xff\x00' + before[first + 11:])
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'refuses' in out.splitlines()[-1] and 'without that line the file can be read' in out.splitlines()[-1]
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 1 and f'{path}, line 2: not a JSON record (no text)' in err
    path.write_bytes(before.split(b'\n', 1)[1])
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'continues from checkpoint-8, but earlier evaluations are lost' in out.splitlines()[-1]
    path.write_bytes(b'')
    code, out, err = ldm(capsys, 'resume', copy)
    assert code == 0 and 'lacks evaluations' in err and '| rl2 | test |' in out
    assert (copy/'weights.safetensors').read_bytes() == (whole()/'weights.safetensors').read_bytes()

def test_config_is_missing(copy, capsys):
    (copy/'config.json').unlink()
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 1 and 'checkpoint-8 is whole' in out.splitlines()[-1] and 'once config.json is right' in out
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 1 and 'config.json is missing; restore it from a copy' in err

@pytest.mark.parametrize('k', range(4))
def test_bit_flips(k, copy, whole, capsys):
    "In any place of a checkpoint or of the weights"
    rng = random.Random(k)
    path = copy/rng.choice(['checkpoint-8/seed-3.pt', 'checkpoint-8/seed-7.pt'])
    for p in (path, copy/'weights.safetensors'):
        data = bytearray(p.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        p.write_bytes(data)
    code, out, _ = ldm(capsys, 'check', copy)
    word = r'damaged|later' # of 2 the flip of one bit can make a greater number
    assert code == 1 and any(l.startswith(tuple(word.split('|'))) and path.name in l for l in out.splitlines())
    assert 'continues from checkpoint-6' in out.splitlines()[-1]
    assert ldm(capsys, 'evaluate', copy)[0] in (1, 2)
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 0 and path.name in err
    same_run(whole(), copy)

def test_everything_damaged(copy, capsys):
    for c in checkpoints(copy): (c/'seed-7.pt').write_bytes(b'torn')
    before = contents(copy)
    code, _, err = ldm(capsys, 'resume', copy, '--frames', 12*1920)
    assert code == 1 and 'nothing was changed' in err and contents(copy) == before

def unsealed(text): return json.dumps({k: v for k, v in json.loads(text).items() if k != 'sha256'}, indent=1) # as before there were seals

@pytest.mark.parametrize('spoil,status,says', [
    (lambda t: t[:100], 1, 'damaged'), (lambda t: '', 1, 'damaged'), (lambda t: '[1]', 1, 'damaged'),
    (lambda t: t.replace('"seeds"', '"seads"'), 1, 'was changed'), (lambda t: t.replace('"gamma"', '"gama"'), 1, 'was changed'),
    (lambda t: unsealed(t).replace('"seeds"', '"seads"'), 2, 'seeds is missing'), (lambda t: unsealed(t).replace('"gamma"', '"gama"'), 2, 'gama'),
    (lambda t: t.replace('"format": 2', '"format": 3'), 2, 'later version'), (lambda t: t.replace('"format": 2', '"format": "x"'), 1, 'format')])
def test_config(spoil, status, says, copy, capsys):
    path = copy/'config.json'
    path.write_text(spoil(path.read_text()))
    before = contents(copy)
    for command in ('resume', 'evaluate'):
        code, _, err = ldm(capsys, command, copy)
        assert code == status and says in err and len(err) < 900
    assert ldm(capsys, 'check', copy)[0] == 1
    assert contents(copy) == before

def test_later_version(copy, capsys, monkeypatch):
    "The newest checkpoint is of a version to come: nothing older is taken in its place"
    path = copy/'checkpoint-8'/'seed-7.pt'
    with monkeypatch.context() as m:
        m.setattr(saving, 'FORMAT', 3)
        path.write_bytes(sealed(*unseal(path)))
    before = contents(copy)
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 2 and 'format 3' in err and 'update ldm_nb' in err
    assert ldm(capsys, 'check', copy)[0] == 1 and contents(copy) == before

def test_no_checkpoint(copy, whole, capsys):
    for c in checkpoints(copy): shutil.rmtree(c)
    before = contents(copy)
    code, _, err = ldm(capsys, 'resume', copy, '--frames', 12*1920)
    assert code == 1 and 'no checkpoint to resume from' in err and contents(copy) == before
    assert ldm(capsys, 'evaluate', copy)[0] == 0
    (copy/'weights.safetensors').unlink()
    code, _, err = ldm(capsys, 'resume', copy)
    assert code == 0 and 'begins again' in err
    same_run(whole(), copy)


# A seed that diverges

def test_nan_gradients(whole, tmp_path, capsys, monkeypatch):
    "Not a number in seed 7's gradients: it is frozen with what it had, seed 3 is what it is alone"
    gradients, count = onpolicy.gradients, iter(range(1000))
    def spoilt(*a, **kw):
        grads = gradients(*a, **kw)
        if next(count) == 5: next(iter(flat(grads).values()))[1].fill_(float('nan'))
        return grads
    with monkeypatch.context() as m:
        m.setattr(onpolicy, 'gradients', spoilt)
        code, _, err = ldm(capsys, *train(run := tmp_path/'run'))
    assert code == 0 and 'seed 7 was frozen in iteration 5' in err
    assert (run/'checkpoint-8'/'seed-3.pt').read_bytes() == (whole()/'checkpoint-8'/'seed-3.pt').read_bytes()
    tensors, about = read_seed(run/'checkpoint-8'/'seed-7.pt')
    assert about['frozen']['iteration'] == 5
    assert all(v.isfinite().all() for k, v in tensors.items() if k.startswith(('params', 'opt')))
    assert measured(run)[7][-1]['frozen'] == about['frozen']
    assert ldm(capsys, 'check', run)[0] == 0


# Two at once

def test_two_processes(copy, capsys):
    hold = multiprocessing.get_context('fork')
    here, there = hold.Pipe()
    def holding():
        with locked(copy): there.send(1); time.sleep(60)
    with warnings.catch_warnings(action='ignore'): (p := hold.Process(target=holding)).start()
    here.recv()
    before = contents(copy)
    code, _, err = ldm(capsys, 'resume', copy, '--frames', 12*1920)
    assert code == 2 and f'another process ({socket.gethostname()}:{p.pid}) is at work' in err and contents(copy) == before
    assert f'process {socket.gethostname()}:{p.pid} is at work in this folder' in ldm(capsys, 'check', copy)[1]
    p.kill(); p.join()
    assert 'at work' not in ldm(capsys, 'check', copy)[1]
    assert ldm(capsys, 'resume', copy)[0] == 0


# Folders of before there were checksums

def older(folder):
    "The folder as format 1 had it"
    for c in checkpoints(folder):
        for f in c.iterdir():
            tensors, about = unseal(f)
            about.pop('measured')
            torch.save(dict(meta=about, tensors=tensors), f)
    config = read_config(folder)
    write_json(folder/'config.json', {k: v for k, v in config.items() if k != 'format'})
    tensors, about = unseal(folder/'weights.safetensors')
    (folder/'weights.safetensors').write_bytes(saving.save(tensors, metadata=dict(about=json.dumps(about))))

def test_older_folder(copy, whole, tmp_path, capsys):
    older(copy)
    code, out, _ = ldm(capsys, 'check', copy)
    assert code == 0 and out.count('unsealed') == 5
    assert ldm(capsys, 'evaluate', copy)[0] == 0 == ldm(capsys, 'record', copy, '--data', tmp_path/'data')[0]
    shutil.rmtree(copy/'checkpoint-8'); (copy/'weights.safetensors').unlink()
    assert ldm(capsys, 'resume', copy)[0] == 0
    same_last(whole(), copy)


# Seeds that join and leave

@pytest.mark.parametrize('method', [pytest.param(m, marks=[pytest.mark.xdist_group(f'gridworld-{m}'), *[pytest.mark.slow]*(m not in JOINING)])
                                    for m in GRID])
def test_seeds_join(method, whole, tmp_path, capsys):
    "Seed 9 joins a finished run of two; killed and stopped on its way, the run of three is that of three from the beginning"
    run = Path(shutil.copytree(whole(method), tmp_path/'run'))
    p = forked(['resume', str(run), '--seeds', '9'], lambda: at_iteration(4)); p.join()
    assert p.exitcode == -signal.SIGKILL and (run/'newcomers').exists()
    assert ldm(capsys, 'evaluate', run)[0] == 0 # still the run of two
    assert 'a change to seeds [3, 7, 9] was begun' in ldm(capsys, 'check', run)[1]
    assert ldm(capsys, 'resume', run)[0] == 0 and not (run/'newcomers').exists()
    assert read_config(run)['seeds'] == [3, 7, 9]
    for name in ('metrics.jsonl', 'weights.safetensors', 'checkpoint-8/seed-9.pt', 'checkpoint-8/seed-7.pt'):
        assert (whole(method, '3,7,9')/name).read_bytes() == (run/name).read_bytes(), name
    assert ldm(capsys, 'check', run)[0] == 0

def test_seeds_leave(whole, tmp_path, capsys, monkeypatch):
    "Out of a stopped run; those that left can go on, and so can the others"
    run = tmp_path/'run'
    with monkeypatch.context() as m:
        signalling(m, 4, signal.SIGTERM)
        assert ldm(capsys, *train(run, seeds='3,7,9'))[0] == 143
    code, _, err = ldm(capsys, 'resume', run, '--without', '9')
    assert code == 0 and 'taken-out-1' in err
    assert ldm(capsys, 'check', run)[0] == 0 == ldm(capsys, 'check', run/'taken-out-1')[0]
    same_last(whole(), run)
    assert ldm(capsys, 'resume', run/'taken-out-1')[0] == 0
    assert (run/'taken-out-1'/'checkpoint-8'/'seed-9.pt').read_bytes() == (whole('rl2', '3,7,9')/'checkpoint-8'/'seed-9.pt').read_bytes()
    assert ldm(capsys, 'record', run, run/'taken-out-1', '--data', tmp_path)[0] == 0

def test_seeds_join_and_leave(whole, tmp_path, capsys):
    "Both at once, killed on the way and when they have joined but not yet left; `resume` alone then does what was asked for"
    run = Path(shutil.copytree(whole(), tmp_path/'run'))
    def before_leaving(): stacks.remove_seeds = lambda *a: die()
    for patch in (lambda: at_iteration(4), before_leaving):
        argv = ['--seeds', '9', '--without', '3'] if not (run/'newcomers').exists() else []
        p = forked(['resume', str(run), *argv], patch); p.join()
        assert p.exitcode == -signal.SIGKILL
    assert read_config(run)['seeds'] == [3, 7, 9]
    assert ldm(capsys, 'resume', run)[0] == 0 and not (run/'newcomers').exists()
    assert read_config(run)['seeds'] == [7, 9] and read_config(run/'taken-out-1')['seeds'] == [3]
    for s in (7, 9): assert (run/'checkpoint-8'/f'seed-{s}.pt').read_bytes() == (whole('rl2', '3,7,9')/'checkpoint-8'/f'seed-{s}.pt').read_bytes()
    assert ldm(capsys, 'check', run)[0] == 0

def test_seeds_that_are_there_stay(copy, whole, capsys):
    "--seeds adds only; what makes no sense is refused before anything is changed"
    assert ldm(capsys, 'resume', copy, '--seeds', '3')[0] == 0
    same_run(whole(), copy)
    before = contents(copy)
    for argv, says in {('--without', '5'): 'without names [5]', ('--without', '3,7'): 'left with none', ('--seeds', '4:4'): 'seeds: ',
                       ('--without', 'x'): 'without: ', ('--seeds', '4', '--without', '4'): 'both name [4]'}.items():
        code, _, err = ldm(capsys, 'resume', copy, *argv)
        assert code == 2 and says in err and contents(copy) == before

def test_newcomers_that_diverge(copy, whole, capsys, monkeypatch):
    "All of them: they stay apart, the run is what it was, and nothing is left to be done"
    gradients = onpolicy.gradients
    def spoilt(*a, **kw): return tree_map(lambda x: x*float('nan'), gradients(*a, **kw))
    with monkeypatch.context() as m:
        m.setattr(onpolicy, 'gradients', spoilt)
        code, _, err = ldm(capsys, 'resume', copy, '--seeds', '9')
    assert code == 1 and 'seed 9' in err and err.splitlines()[-1] == f'continue with: ldm resume {copy}'
    assert measured(copy/'taken-out-1')[9][-1]['frozen']['iteration'] == 0
    assert ldm(capsys, 'resume', copy)[0] == 0 and read_config(copy)['seeds'] == [3, 7]
    shutil.rmtree(copy/'taken-out-1')
    same_run(whole(), copy)

def test_one_agent_alone(whole):
    world, agent = load_agent(whole(), 7)
    w, about = unseal(whole()/'weights.safetensors')
    h = agent.start(2)
    assert about['seeds'] == [3, 7] and all(len(x) == 1 for x in ([h] if torch.is_tensor(h) else h.values()))


# Provenance, sizes

def test_segments(copy, tmp_path, capsys):
    "Where each part of a run comes from, and how long it took; another place is said"
    config = read_config(copy)
    write_json(copy/'config.json', dict(config, commit='0'*40))
    code, _, err = ldm(capsys, 'resume', copy, '--frames', 10*1920, '--threads', '2')
    assert code == 0 and 'a new segment: threads 1 -> 2, commit 000000000000 -> ' in err and 'equal in distribution' in err
    row = run_records(copy)[0]
    first, second = row['segments']
    assert (first['frames'], second['frames'], second['threads']) == (0, FRAMES, 2) and second['seconds'] > 0
    assert {'command', 'commit', 'versions', 'machine', 'device', 'threads', 'seconds'} <= first.keys() & second.keys()
    assert row['seconds'] == round(first['seconds'] + second['seconds'], 1)

def test_a_full_buffer_is_small(tmp_path):
    "LDM on the gridworld with the paper's buffer of 100,000 tasks: under 8 MB a seed"
    cfg, world, gens = preset('gridworld', 'ldm'), gridworld(), generators([0])
    state = METHODS['ldm'].method.init(cfg, world, gens)
    assert cfg.vae.buffer_size == 100_000
    state['buffer'].random_(generator=torch.Generator().manual_seed(0))
    path = save_checkpoint(tmp_path, Progress([0], state, 10_000), gens, tasks=100_000)
    size = (path/'seed-0.pt').stat().st_size
    assert 4_100_000 < size < 8_000_000
