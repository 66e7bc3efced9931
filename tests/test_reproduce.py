"`ldm reproduce`: what is missing is trained, stopped, gone on with and recorded, and nothing else is."
import gzip, json, multiprocessing, os, re, signal, socket, time, warnings
from pathlib import Path

import pytest

from ldm_nb.lab import cli, jobs
from ldm_nb.lab.lock import locked
from ldm_nb.lab.reproduce import COLUMNS, kept_weights
from ldm_nb.evaluation.records import read_records
from ldm_nb.lab.config import read_config

pytestmark = pytest.mark.usefixtures('no_pictures')

ROWS = ('B,gridworld,ldm,paper,small,vae_batch=2 buffer_size=64 posteriors=4 gru_hidden=16,3:5,4000',
        '3,gridworld,rl2,paper,,,3:5,4000',
        '1c,gridworld,rl2,paper,,,4:5,4000',
        '3,gridworld,rl2,release,release,,7:8,2000')


def cli_train(*argv):
    with pytest.raises(SystemExit) as e: cli.main(['train', *map(str, argv), '--threads', '1'])
    return e.value.code

@pytest.fixture
def reproduce(tmp_path, capsys, monkeypatch):
    "The command in a folder of its own; the table's rows may be changed"
    monkeypatch.setattr(os, 'nice', lambda n: n)  # else the other tests of this process would be slowed
    table = tmp_path/'table.csv'
    table.write_text('\n'.join((','.join(COLUMNS), *ROWS)) + '\n')
    def call(*argv):
        where = ['--table', table, '--data', tmp_path/'data'/'runs', '--runs', tmp_path/'runs', '--threads', '1']
        with pytest.raises(SystemExit) as e: cli.main([str(a) for a in ('reproduce', *argv, *where)])
        return e.value.code, *capsys.readouterr()
    call.table, call.data, call.runs = table, tmp_path/'data'/'runs', tmp_path/'runs'
    return call

def test_everything(reproduce):
    code, out, err = reproduce()
    assert code == 0 and 'all runs of all are recorded' in out, err
    assert sorted(p.name for p in reproduce.data.iterdir()) == \
        ['gridworld-ldm-small.jsonl.gz', 'gridworld-rl2-release.jsonl.gz', 'gridworld-rl2.jsonl.gz']
    rows = read_records(reproduce.data/'gridworld-ldm-small.jsonl.gz')
    assert [r['seed'] for r in rows] == [3, 4] and rows[0]['config']['vae_batch'] == 2 and rows[0]['frames'][-1] == 5760
    assert rows[0]['command'].startswith('ldm train gridworld --method ldm --seeds 3:5 --variant small --vae-batch 2')
    assert read_records(reproduce.data/'gridworld-rl2-release.jsonl.gz')[0]['config']['skip_first_update'] is True
    params, about = kept_weights(reproduce.data.parent/'weights'/'gridworld-ldm-small.safetensors')
    assert about['seeds'] == [3, 4] and params['vae']['decoder']['out']['w'].shape[0] == 2
    assert err.count('recorded: ') == 3  # the third row needs nothing of its own
    code, out, err = reproduce()
    assert code == 0 and 'recorded: ' not in err

def test_a_figure_and_its_missing_seeds(reproduce):
    assert reproduce('1c')[0] == 0
    path = reproduce.data/'gridworld-rl2.jsonl.gz'
    assert [r['seed'] for r in read_records(path)] == [4]
    code, out, _ = reproduce('3', '--list')
    assert code == 0 and '| gridworld-rl2 | 3:5 | 4000 | missing: 1 seed |' in re.sub(' +', ' ', out) and 'hours are missing' in re.sub(r'\s+', ' ', out)
    old = [dict(r, config={k: v for k, v in r['config'].items() if k != 'task_end'}) for r in read_records(path)]
    path.write_bytes(gzip.compress('\n'.join(map(json.dumps, old)).encode()))  # as before that setting was made
    assert reproduce('3')[0] == 0
    assert [r['seed'] for r in read_records(path)] == [3, 4]

def test_time_is_over(reproduce):
    "Stopped at once, with a checkpoint; the next call goes on with the same folder"
    code, out, err = reproduce('3', '--minutes', '0.0001')
    assert code == 0 and 'minutes are over' in out and not reproduce.data.exists()
    folder = next(reproduce.runs.glob('gridworld-rl2/*'), None)
    assert reproduce('3')[0] == 0
    if folder: assert [folder] == list(reproduce.runs.glob('gridworld-rl2/*'))

def test_interrupted_and_longer(reproduce, monkeypatch):
    "Ctrl-C: status 130, gone on with by the next call; a larger budget extends the same run"
    tick = jobs.Sink.tick
    def interrupting(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == 2: os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', interrupting)
        assert reproduce('3')[0] == 130
    code, _, err = reproduce('3')
    assert code == 0 and 'continuing ' in err
    reproduce.table.write_text(reproduce.table.read_text().replace(',3:5,4000\n1c', ',3:5,9000\n1c'))
    assert reproduce('3')[0] == 0
    rows, = [read_records(reproduce.data/'gridworld-rl2.jsonl.gz')]
    assert [r['frames'][-1] for r in rows] == [9600, 9600] and len(rows[0]['segments']) == 3
    assert len(list(reproduce.runs.glob('gridworld-rl2/*'))) == 1

def test_a_row_that_changed(reproduce):
    "The run that an earlier table left unfinished under the same name is neither gone on with nor recorded"
    assert reproduce('3', '--minutes', '0.0001')[0] == 0
    old = reproduce.runs/'gridworld-rl2-release'/'7-7'
    assert cli_train('gridworld', '--method', 'rl2', '--seeds', '7:8', '--frames', '2000', '--out', old) == 0
    assert reproduce('3')[0] == 0
    assert sorted(p.name for p in old.parent.iterdir()) == ['7-7', '7-7-2']
    assert read_records(reproduce.data/'gridworld-rl2-release.jsonl.gz')[0]['config']['skip_first_update'] is True

def test_another_process_is_at_work(reproduce, monkeypatch):
    "Its run is passed by, the others are made; the next call, when it has ended, makes what is left"
    tick = jobs.Sink.tick
    def interrupting(self, progress, metrics):
        tick(self, progress, metrics)
        if progress.iteration == 1: os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as m:
        m.setattr(jobs.Sink, 'tick', interrupting)
        assert reproduce('3')[0] == 130
    folder, = reproduce.runs.glob('gridworld-rl2/*')
    fork = multiprocessing.get_context('fork')
    here, there = fork.Pipe()
    def holding():
        with locked(folder): there.send(1); time.sleep(60)
    with warnings.catch_warnings(action='ignore'): (p := fork.Process(target=holding)).start()
    here.recv()
    code, _, err = reproduce('3')
    p.kill(); p.join()
    assert code == 2 and f'figure 3 has to wait: another process ({socket.gethostname()}:{p.pid}) is at work in {folder}\n' in err
    assert 'all other runs are done' in err.splitlines()[-1]
    assert [x.name for x in reproduce.data.iterdir()] == ['gridworld-rl2-release.jsonl.gz']
    assert reproduce('3')[0] == 0 and len(list(reproduce.data.iterdir())) == 2

def test_bad_input(reproduce):
    assert reproduce('figure-9')[0] == 2
    for bad, says in {'3,gridworld,rl2,paper,x,gama=1,0:1,10': "did you mean 'gamma'?", '3,gridworld,rl2,paper,../x,,0:1,10': 'use letters',
                      '3,gridworld,rl2,paper,,gamma=.5,0:1,10': 'give it another variant', '3,gridworld,rl2,paper,,,0:0,10': 'empty range'}.items():
        reproduce.table.write_text('\n'.join((','.join(COLUMNS), ROWS[1], bad)) + '\n')
        code, _, err = reproduce()
        assert code == 2 and 'line 3' in err and says in err and 'Traceback' not in err
    reproduce.table.write_text('figure,world\n')
    assert 'its first line must be' in reproduce()[2]
    assert not reproduce.runs.exists()

def test_records_of_other_settings(reproduce):
    "A record made with other settings is neither taken for the row's nor overwritten"
    assert reproduce('1c')[0] == 0
    reproduce.table.write_text('\n'.join((','.join(COLUMNS), '3,gridworld,rl2,paper,,gamma=0.5,3:5,4000')) + '\n')
    code, _, err = reproduce()
    assert code == 2 and 'is of other settings (gamma)' in err
